// What is drawn over an image: outlines with names, class maps, colours of features, the heat of attention.

export const OTHERS = ["#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080", "#f032e6", "#9a6324"];
const HEAT = [[4, 2, 14], [49, 10, 92], [105, 22, 110], [160, 42, 99], [209, 70, 67], [243, 120, 25], [252, 180, 26], [252, 255, 164]];

/** Return a colour as [red, green, blue]; the server gives `#rrggbb` or three numbers. */
export function rgb(colour) {
  if (Array.isArray(colour)) return colour.slice(0, 3).map(Number);
  const digits = /^#([0-9a-f]{6})/i.exec(colour ?? "")?.[1] ?? "7a8290";
  return [0, 2, 4].map((at) => parseInt(digits.slice(at, at + 2), 16));
}

export const css = (colour) => `rgb(${rgb(colour).join(" ")})`;

const bright = ([r, g, b]) => 0.299 * r + 0.587 * g + 0.114 * b > 140;

/** Return a layer of outlines: `shapes()` gives `{corners, colour, text, strong, faded}`. */
export function outlines(shapes) {
  return ({ context, place, density }) => {
    const placed = shapes().map((shape) => ({ ...shape, corners: shape.corners.map(([x, y]) => place(x, y)) }));
    context.lineJoin = "round";
    for (const { corners, colour, strong, faded } of placed) {
      context.globalAlpha = faded ? 0.35 : 1;
      context.beginPath();
      corners.forEach(([x, y], number) => (number ? context.lineTo(x, y) : context.moveTo(x, y)));
      context.closePath();
      context.strokeStyle = "#000a";
      context.lineWidth = (strong ? 6 : 3.6) * density;
      context.stroke();
      context.strokeStyle = css(colour);
      context.lineWidth = (strong ? 3.4 : 2) * density;
      context.stroke();
      if (strong) {
        context.fillStyle = "#fff4";
        context.fill();
      }
    }
    context.globalAlpha = 1;
    // Names come last, so that no outline crosses them; small objects have theirs only when they are chosen.
    const few = placed.length <= 12;
    for (const shape of placed) {
      const xs = shape.corners.map(([x]) => x), ys = shape.corners.map(([, y]) => y);
      const wide = Math.max(...xs) - Math.min(...xs), high = Math.max(...ys) - Math.min(...ys);
      if (shape.text && !shape.faded && (shape.strong || few || Math.max(wide, high) > 56 * density)) {
        label(context, shape, Math.min(...xs), Math.min(...ys), Math.max(...ys), density);
      }
    }
  };
}

function label(context, { text, colour }, x, top, bottom, density) {
  const short = text.length > 40 ? `${text.slice(0, 39)}…` : text;
  context.font = `600 ${12 * density}px system-ui, sans-serif`;
  context.textBaseline = "middle";
  const width = context.measureText(short).width + 8 * density, height = 18 * density;
  const left = Math.max(0, Math.min(x - density, context.canvas.width - width));
  const y = top - height >= 0 ? top - height : Math.min(bottom, context.canvas.height - height);
  context.fillStyle = css(colour);
  context.fillRect(left, y, width, height);
  context.fillStyle = bright(rgb(colour)) ? "#000" : "#fff";
  context.fillText(short, left + 4 * density, y + height / 2 + density);
}

/** Return a layer that stretches a picture over the whole image. */
export function sheet(picture, opacity, smooth) {
  return ({ context, place, image }) => {
    const drawn = picture();
    if (!drawn) return;
    const [left, top] = place(0, 0).map(Math.round), [right, down] = place(image.width, image.height).map(Math.round);
    context.save();
    context.globalAlpha = opacity();
    context.imageSmoothingEnabled = smooth;
    context.drawImage(drawn, left, top, right - left, down - top);
    context.restore();
  };
}

/** Return a class map as a canvas; `colours` gives [r, g, b, a] or null by class number. */
export function painted({ width, height, values }, colours, seen = () => true) {
  const canvas = new OffscreenCanvas(width, height), context = canvas.getContext("2d");
  const pixels = context.createImageData(width, height);
  const out = new Uint32Array(pixels.data.buffer);
  const table = Array.from({ length: 256 }, (_, id) => {
    const colour = colours(id);
    return colour ? new Uint32Array(Uint8ClampedArray.of(...colour).buffer)[0] : 0;
  });
  for (let at = 0; at < values.length; at++) if (seen(at)) out[at] = table[values[at]];
  context.putImageData(pixels, 0, 0);
  return canvas;
}

/** Return attention (rows of numbers) as a canvas of one pixel a patch; `query` is left out of the scale. */
export function heat(values, query) {
  const rows = values.length, columns = values[0].length;
  const canvas = new OffscreenCanvas(columns, rows), context = canvas.getContext("2d");
  const pixels = context.createImageData(columns, rows);
  const most = Math.max(1e-12, ...values.flatMap((row, y) => row.filter((_, x) => y !== query[0] || x !== query[1])));
  values.forEach((row, y) => row.forEach((value, x) => {
    const share = Math.min(1, value / most), place = share * (HEAT.length - 1), k = Math.min(HEAT.length - 2, Math.floor(place));
    const colour = HEAT[k].map((from, channel) => from + (HEAT[k + 1][channel] - from) * (place - k));
    pixels.data.set([...colour, 255 * (0.55 + 0.4 * share ** 0.6)], 4 * (y * columns + x));
  }));
  context.putImageData(pixels, 0, 0);
  return canvas;
}

/** Return a layer that frames the chosen patch. */
export function frame(patch, rows, columns) {
  return ({ context, place, image, density }) => {
    const [row, column] = patch;
    const [left, top] = place(column / columns * image.width, row / rows * image.height);
    const [right, down] = place((column + 1) / columns * image.width, (row + 1) / rows * image.height);
    for (const [colour, width] of [["#000", 5], ["#fff", 2.4]]) {
      context.strokeStyle = colour;
      context.lineWidth = width * density;
      context.strokeRect(left, top, right - left, down - top);
    }
  };
}

/** Return the bytes of a base64 text. */
export const bytes = (text) => Uint8Array.from(atob(text), (character) => character.charCodeAt(0));

/**
 * Return `{width, height, values}` of a PNG with one channel (palette or grey, up to 8 bits), its numbers as they are.
 * A canvas would turn a palette into colours, of which two classes may share one.
 */
export async function numbers(png) {
  const view = new DataView(png.buffer, png.byteOffset, png.byteLength), parts = [];
  let head = null;
  for (let at = 8; at + 12 <= png.length;) {
    const length = view.getUint32(at), kind = String.fromCharCode(...png.subarray(at + 4, at + 8));
    const data = png.subarray(at + 8, at + 8 + length);
    if (kind === "IHDR") head = { width: view.getUint32(at + 8), height: view.getUint32(at + 12), depth: data[8], colour: data[9], interlaced: data[12] };
    if (kind === "IDAT") parts.push(data);
    at += 12 + length;
  }
  if (!head || ![0, 3].includes(head.colour) || head.depth > 8 || head.interlaced) throw new Error("The server's class map is no PNG of one channel.");
  const stream = new Blob(parts).stream().pipeThrough(new DecompressionStream("deflate"));
  return { width: head.width, height: head.height, values: unfiltered(new Uint8Array(await new Response(stream).arrayBuffer()), head) };
}

function unfiltered(raw, { width, height, depth }) {
  const stride = Math.ceil(width * depth / 8), values = new Uint8Array(width * height);
  let before = new Uint8Array(stride);
  for (let y = 0; y < height; y++) {
    const filter = raw[y * (stride + 1)], row = raw.slice(y * (stride + 1) + 1, (y + 1) * (stride + 1));
    for (let x = 0; filter && x < stride; x++) {
      const left = x ? row[x - 1] : 0, up = before[x], corner = x ? before[x - 1] : 0;
      row[x] += filter === 1 ? left : filter === 2 ? up : filter === 3 ? (left + up) >> 1 : paeth(left, up, corner);
    }
    for (let x = 0; x < width; x++) {
      const bit = x * depth;
      values[y * width + x] = depth === 8 ? row[x] : (row[bit >> 3] >> (8 - depth - (bit & 7))) & ((1 << depth) - 1);
    }
    before = row;
  }
  return values;
}

function paeth(left, up, corner) {
  const guess = left + up - corner;
  const l = Math.abs(guess - left), u = Math.abs(guess - up), c = Math.abs(guess - corner);
  return l <= u && l <= c ? left : u <= c ? up : corner;
}
