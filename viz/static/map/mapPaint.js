// Points as pixels. A hundred thousand of them are drawn by writing to the picture's memory, in a few milliseconds, with no
// library and no graphics card: each point is a stamp of a disc whose edge is smooth, blended over what is there.

const PAD = 32;   // pixels around the picture, twice the largest stamp's reach: a stamp at the edge needs no test

const stamps = new Map();

// Offsets and coverages (0..256) of a disc.
function stampOf(radius, stride) {
  const name = `${radius.toFixed(2)}/${stride}`;
  if (stamps.has(name)) return stamps.get(name);
  const [at, cover] = [[], []];
  const reach = Math.min(Math.ceil(radius), PAD / 2 - 1);
  for (let dy = -reach; dy <= reach; dy += 1) {
    for (let dx = -reach; dx <= reach; dx += 1) {
      const part = Math.min(Math.max(radius + 0.5 - Math.hypot(dx, dy), 0), 1);
      if (part > 0) {
        at.push(dy * stride + dx);
        cover.push(Math.round(256 * part));
      }
    }
  }
  if (stamps.size > 64) stamps.clear();
  stamps.set(name, { at: Int32Array.from(at), cover: Int32Array.from(cover) });
  return stamps.get(name);
}

// A colour "rgb(r, g, b)" as the picture's memory has it.
export function packed([red, green, blue]) {
  return ((blue << 16) | (green << 8) | red) >>> 0;
}

// Radius in CSS pixels that suits `count` points in a picture at this zoom, and how opaque they are.
export function pointLook(count, width, height, zoom) {
  const apart = Math.sqrt((width * height) / Math.max(count, 1));
  const radius = Math.min(Math.max(0.22 * apart * zoom ** 0.55, 1), 6.5);
  return { radius, alpha: Math.min(0.5 + 0.08 * radius, 0.9) };
}

export function painter(canvas) {
  const context = canvas.getContext("2d", { alpha: false });
  let [image, pixels, ratio] = [null, null, 1];

  function resize(width, height) {
    ratio = Math.min(window.devicePixelRatio || 1, 2);
    [canvas.width, canvas.height] = [Math.max(Math.round(width * ratio), 1), Math.max(Math.round(height * ratio), 1)];
    image = context.createImageData(canvas.width + 2 * PAD, canvas.height + 2 * PAD);
    pixels = new Uint32Array(image.data.buffer);
  }

  // Stamp some points: `order` which and in which order, `colours` by place, `shade` 0..256 how opaque.
  function stamp({ x, y }, order, colours, [per, right, down], radius, shade) {
    const [wide, tall, stride] = [canvas.width, canvas.height, canvas.width + 2 * PAD];
    const { at, cover } = stampOf(Math.min(radius * ratio, PAD / 2 - 1), stride);
    const reach = PAD / 2;
    const [scale, left, top] = [per * ratio, right * ratio, down * ratio];
    const parts = Int32Array.from(cover, (part) => (part * shade) >> 8);
    for (let turn = 0; turn < order.length; turn += 1) {
      const place = order[turn];
      const px = Math.round(x[place] * scale + left);
      const py = Math.round(top - y[place] * scale);
      if (!(px >= -reach && px <= wide + reach && py >= -reach && py <= tall + reach)) continue;
      const centre = (py + PAD) * stride + px + PAD;
      const colour = colours[place];
      const [both, green] = [colour & 0xff00ff, colour & 0x00ff00];
      for (let step = 0; step < at.length; step += 1) {
        const where = centre + at[step];
        const part = parts[step];
        const rest = 256 - part;
        const under = pixels[where];
        pixels[where] = ((((under & 0xff00ff) * rest + both * part) >>> 8) & 0xff00ff) | ((((under & 0x00ff00) * rest + green * part) >>> 8) & 0x00ff00) | 0xff000000;
      }
    }
  }

  // Draw layers of points, one after the other, on paper of a colour.
  function paint(paper, points, layers, transform) {
    pixels.fill((packed(paper) | 0xff000000) >>> 0);
    for (const { order, colours, radius, alpha } of layers) stamp(points, order, colours, transform, radius, Math.round(256 * alpha));
    context.putImageData(image, -PAD, -PAD);
  }

  return { resize, paint, get ratio() { return ratio; } };
}
