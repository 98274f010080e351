// A Map of bounded size: what was looked at longest ago is forgotten first.
export class Recent extends Map {
  constructor(most) {
    super();
    this.most = most;
  }

  get(key) {
    if (!this.has(key)) return undefined;
    const value = super.get(key);
    this.delete(key);
    super.set(key, value);
    return value;
  }

  set(key, value) {
    this.delete(key);
    super.set(key, value);
    if (this.size > this.most) this.delete(this.keys().next().value);
    return this;
  }
}
