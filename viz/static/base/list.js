// A list of any length that draws only the rows in sight.
//
// Browsers hold elements of some 17 to 33 million px at most: a longer list is squeezed into TALLEST px, so that the scroll bar
// still reaches every row.

export const ROW = 46;   // px, the height of a row in latents.css
export const TALLEST = 16_000_000;
const BEYOND = 8;   // rows drawn above and below those in sight

// Which rows are in sight, and where they stand.
export function sight(count, height, scrolled) {
  const whole = count * ROW;
  const tall = Math.min(whole, TALLEST);
  const top = whole <= TALLEST ? scrolled : (scrolled / Math.max(tall - height, 1)) * (whole - height);
  const first = Math.max(Math.floor(top / ROW) - BEYOND, 0);
  const last = Math.min(Math.floor(top / ROW) + Math.ceil(height / ROW) + 1 + BEYOND, count);
  return { tall, first, last, top, at: (row) => scrolled + row * ROW - top };
}

// How far to scroll so that a row stands `down` px below the upper edge.
export function scrollTo(row, count, height, down) {
  const whole = count * ROW;
  const top = Math.max(Math.min(row * ROW - down, whole - height), 0);
  return whole <= TALLEST ? top : (top / Math.max(whole - height, 1)) * (TALLEST - height);
}

// `draw(place in the list, px from the top)` makes one row; `refill()` after the list has changed, `reveal(row)` brings one into sight (-1: none).
export function rolling(scroll, tall, length, draw) {
  const height = () => scroll.clientHeight || 600;
  const refill = () => {
    const seen = sight(length(), height(), scroll.scrollTop);
    tall.style.height = `${seen.tall}px`;
    tall.replaceChildren(...Array.from({ length: Math.max(seen.last - seen.first, 0) }, (_, offset) => draw(seen.first + offset, seen.at(seen.first + offset))));
    return seen;
  };
  const reveal = (row) => {
    const { top } = sight(length(), height(), scroll.scrollTop);
    if (row >= 0 && (row * ROW < top || (row + 1) * ROW > top + height())) {
      tall.style.height = `${sight(length(), height(), 0).tall}px`;
      scroll.scrollTop = scrollTo(row, length(), height(), height() / 3);
    }
    return refill();
  };
  return { refill, reveal, page: () => Math.max(Math.floor(height() / ROW) - 1, 1) };
}
