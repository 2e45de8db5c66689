// An image of any size as a pyramid of tiles of 256 pixels: level 0 is the full resolution, each level halves.

import { getBlob } from "./api.js";

const SIDE = 256, KEPT = 400, AT_ONCE = 6;

export class Pyramid {
  /** image: `{id, width, height}`; `arrived` is called when there is more to draw, `failed` with what went wrong. */
  constructor(image, arrived, failed) {
    Object.assign(this, { image, arrived, failed });
    this.levels = Math.max(0, Math.ceil(Math.log2(Math.max(image.width, image.height) / SIDE))) + 1;
    this.tiles = new Map();
    this.waiting = [];
    this.running = 0;
    this.closed = false;
  }

  close() {
    this.closed = true;
    this.waiting = [];
    for (const tile of this.tiles.values()) tile.bitmap?.close();
    this.tiles.clear();
  }

  /** Draw what is known of the part `[x1, y1, x2, y2]` of the image, and fetch what is missing of its level. */
  draw(context, part, place, density) {
    const wanted = Math.min(this.levels - 1, Math.max(0, Math.floor(Math.log2(1 / density) + 0.25)));
    this.waiting = [];
    for (let level = this.levels - 1; level >= wanted; level--) {
      for (const [x, y] of this.cover(level, part)) {
        const tile = this.tiles.get(`${level}/${x}/${y}`);
        if (tile?.bitmap) {
          this.tiles.delete(tile.key);
          this.tiles.set(tile.key, tile);
          const step = SIDE * 2 ** level;
          const right = Math.min(this.image.width, (x + 1) * step), down = Math.min(this.image.height, (y + 1) * step);
          const [left, top] = place(x * step, y * step).map(Math.round);
          const [to, below] = place(right, down).map(Math.round);
          const own = [right - x * step, down - y * step].map((side) => Math.max(1, side / 2 ** level));
          context.drawImage(tile.bitmap, 0, 0, ...own, left, top, to - left, below - top);
        } else if (!tile && (level === wanted || level === this.levels - 1)) {
          this.waiting.push([level, x, y]);
        }
      }
    }
    this.fetch();
  }

  cover(level, [x1, y1, x2, y2]) {
    const step = SIDE * 2 ** level, found = [];
    const last = [Math.ceil(this.image.width / step) - 1, Math.ceil(this.image.height / step) - 1];
    for (let y = Math.max(0, Math.floor(y1 / step)); y <= Math.min(last[1], Math.floor(y2 / step)); y++) {
      for (let x = Math.max(0, Math.floor(x1 / step)); x <= Math.min(last[0], Math.floor(x2 / step)); x++) found.push([x, y]);
    }
    return found;
  }

  fetch() {
    while (this.waiting.length && this.running < AT_ONCE) {
      const [level, x, y] = this.waiting.shift(), key = `${level}/${x}/${y}`;
      this.tiles.set(key, { key });
      this.running++;
      getBlob(`images/${encodeURIComponent(this.image.id)}/tiles/${key}.png`)
        .then((blob) => createImageBitmap(blob))
        .then((bitmap) => {
          if (this.closed) { bitmap.close(); return; }
          this.tiles.set(key, { key, bitmap });
          this.forget();
        })
        .catch((error) => { if (!this.closed) this.failed(error); })
        .finally(() => {
          this.running--;
          if (!this.closed) { this.fetch(); this.arrived(); }
        });
    }
  }

  /** Drop the tiles that were not drawn for longest, but never those of the coarsest level. */
  forget() {
    for (const [key, tile] of this.tiles) {
      if (this.tiles.size <= KEPT) return;
      if (!tile.bitmap || key.startsWith(`${this.levels - 1}/`)) continue;
      tile.bitmap.close();
      this.tiles.delete(key);
    }
  }

  /** The whole image, at most `longest` pixels on its longer side, once its tiles are there. */
  async whole(longest) {
    let level = 0;
    while (Math.max(this.image.width, this.image.height) / 2 ** level > longest) level++;
    level = Math.min(level, this.levels - 1);
    const scale = 2 ** -level;
    const canvas = new OffscreenCanvas(Math.max(1, Math.round(this.image.width * scale)), Math.max(1, Math.round(this.image.height * scale)));
    const context = canvas.getContext("2d");
    for (const [x, y] of this.cover(level, [0, 0, this.image.width, this.image.height])) {
      const blob = await getBlob(`images/${encodeURIComponent(this.image.id)}/tiles/${level}/${x}/${y}.png`);
      context.drawImage(await createImageBitmap(blob), x * SIDE, y * SIDE);
    }
    return { canvas, scale };
  }
}
