// The network on onnxruntime-web: one graph per setting, and one file of kernels that all graphs share.
import * as ort from "./ort.wasm.min.mjs";

const TILE = 512; // pixels per side, without the overlap
const bytes = async (path) => {
  const answer = await fetch(path);
  if (!answer.ok) throw new Error(`${path} is not there (${answer.status}): build the page first.`);
  return new Uint8Array(await answer.arrayBuffer());
};

export const threads = globalThis.crossOriginIsolated ? Math.min(4, navigator.hardwareConcurrency || 1) : 1;
ort.env.wasm.numThreads = threads;

export const model = JSON.parse(new TextDecoder().decode(await bytes("model.json")));
const kernels = await bytes("kernels.bin");
let held = { setting: null, session: null };
let judge = null; // the session of the network that says how much noise there is
let judged = { planes: null, levels: null };

async function create(name) {
  return ort.InferenceSession.create(await bytes(`${name}.onnx`), {
    executionProviders: ["wasm"],
    externalData: [{ path: "kernels.bin", data: kernels }],
  });
}

// The session of a setting; the previous one is released, because each holds its own kernels and memory.
async function sessionOf(setting) {
  if (held.setting !== setting) {
    await held.session?.release();
    held = { setting: null, session: null };
    held = { setting, session: await create(setting.output) };
  }
  return held.session;
}

// Tiles that overlap by as far as the network sees, so that the result has no seams.
function tiles(width, height, radius) {
  const side = Math.ceil(TILE / model.grid) * model.grid;
  const halo = side < Math.max(width, height) ? Math.ceil(radius / model.grid) * model.grid : 0;
  const parts = (whole) =>
    Array.from({ length: Math.ceil(whole / side) }, (_, i) => {
      const [start, stop] = [i * side, Math.min((i + 1) * side, whole)];
      return { start, stop, from: Math.max(start - halo, 0), to: Math.min(stop + halo, whole) };
    });
  return parts(height).flatMap((rows) => parts(width).map((columns) => ({ rows, columns })));
}

// Rows and columns of planes of `whole` pixels per row; both sides as [start, stop).
function crop(planes, count, whole, tall, [top, bottom], [left, right]) {
  const [width, height] = [right - left, bottom - top];
  const out = new Float32Array(count * width * height);
  for (let c = 0; c < count; c++) {
    for (let y = 0; y < height; y++) {
      const at = (c * tall + top + y) * whole + left;
      out.set(planes.subarray(at, at + width), (c * height + y) * width);
    }
  }
  return out;
}

// Planes with sides filled up to the network's multiples, by reflection at the right and the bottom; a short side repeats.
function filled(planes, count, wide, tall) {
  const [width, height] = [wide, tall].map((side) => Math.ceil(side / model.multiple) * model.multiple);
  if (width === wide && height === tall) return planes;
  const reflects = Math.min(wide, tall) >= model.multiple;
  const back = (i, side) => (i < side ? i : reflects ? 2 * (side - 1) - i : side - 1);
  const out = new Float32Array(count * width * height);
  for (let c = 0, at = 0; c < count; c++) {
    for (let y = 0; y < height; y++) {
      const row = (c * tall + back(y, tall)) * wide;
      for (let x = 0; x < width; x++) out[at++] = planes[row + back(x, wide)];
    }
  }
  return out;
}

// What the judge says: levels, of 255, of white and of coarse noise at some brightnesses from black to white. It sees all of a
// picture up to a megapixel, and of a larger one 16 parts, evenly spread.
async function levelsOf(planes, width, height) {
  if (judged.planes === planes) return judged.levels;
  judge ??= await create("judge");
  let [seen, wide, tall] = [planes, width, height];
  if (width * height > model.look ** 2) {
    [wide, tall] = [width, height].map((whole) => Math.max(Math.floor(Math.min(model.look, whole - (whole % 8)) / 4), 1));
    seen = new Float32Array(3 * 16 * wide * tall);
    for (let part = 0; part < 16; part++) {
      const [i, j] = [Math.floor(part / 4), part % 4];
      const [top, left] = [Math.round((i * (height - tall)) / 3), Math.round((j * (width - wide)) / 3)];
      const cut = crop(planes, 3, width, height, [top, top + tall], [left, left + wide]);
      for (let row = 0; row < 3 * tall; row++) {
        const [c, y] = [Math.floor(row / tall), row % tall];
        seen.set(cut.subarray(row * wide, (row + 1) * wide), ((4 * c + i) * tall + y) * 4 * wide + j * wide);
      }
    }
    [wide, tall] = [4 * wide, 4 * tall];
  }
  const batch = 3 / model.channels;
  const { data, dims } = (await judge.run({ image: new ort.Tensor("float32", seen, [batch, model.channels, tall, wide]) })).levels;
  const levels = new Float32Array(dims[1] * dims[2]);
  for (let i = 0; i < data.length; i++) levels[i % levels.length] += data[i] / batch;
  judged = { planes, levels };
  return levels;
}

// The mean of three planes, each pixel's averaged over a square around it; edges repeat.
function brightness(planes, wide, tall) {
  const [size, around] = [wide * tall, (model.smoothing - 1) / 2];
  const within = (i, side) => Math.min(Math.max(i, 0), side - 1);
  let gray = new Float32Array(size);
  for (let i = 0; i < planes.length; i++) gray[i % size] += Math.min(Math.max(planes[i], 0), 1) / 3;
  for (const down of [0, 1]) {
    const mean = new Float32Array(size);
    for (let y = 0, at = 0; y < tall; y++) {
      for (let x = 0; x < wide; x++, at++) {
        for (let k = -around; k <= around; k++) {
          mean[at] += (down ? gray[within(y + k, tall) * wide + x] : gray[y * wide + within(x + k, wide)]) / model.smoothing;
        }
      }
    }
    gray = mean;
  }
  return gray;
}

// The levels at each pixel of three planes, two planes: those of the judge, read off the brightness, times `strength`.
function levelMap(levels, strength, planes, wide, tall) {
  const [size, knots] = [wide * tall, levels.length / 2];
  const out = new Float32Array(2 * size);
  brightness(planes, wide, tall).forEach((gray, i) => {
    const low = Math.min(Math.floor(gray * (knots - 1)), knots - 2);
    const part = gray * (knots - 1) - low;
    for (const kind of [0, 1]) {
      const at = kind * knots + low;
      out[kind * size + i] = strength * (levels[at] * (1 - part) + levels[at + 1] * part);
    }
  });
  return out;
}

// The input `sigma` for three planes, which the network sees with sides filled up to `full`: the same for each of its images.
function sigmaOf(planes, level, strength, levels, full, wide, tall) {
  const batch = 3 / model.channels;
  let [one, sides] = [[level], [1, 1]];
  if (model.levels === 2) one = [strength * level, 0];
  if (levels) [one, sides] = [filled(levelMap(levels, strength, planes, wide, tall), 2, wide, tall), full];
  const sigma = new Float32Array(batch * one.length);
  for (let i = 0; i < batch; i++) sigma.set(one, i * one.length);
  return new ort.Tensor("float32", sigma, [batch, model.levels, sides[1], sides[0]]);
}

// Denoises three planes of floats in [0, 1], tile by tile: `each` gets {left, top, width, height, data}, the milliseconds of the
// network so far, and how many tiles of how many are done; it stops where `each` gives false. `level`: of white noise, of 255; -1
// for unknown, which a judge then says. `strength` multiplies what a network of two levels is told; others take no heed of it.
export async function denoise(planes, width, height, place, level, each, strength = 1) {
  const setting = model.settings[place];
  const levels = model.levels === 2 && level < 0 ? await levelsOf(planes, width, height) : null;
  const session = await sessionOf(setting);
  const all = tiles(width, height, setting.radius);
  const batch = 3 / model.channels;
  let ms = 0;
  for (const [i, { rows, columns }] of all.entries()) {
    const [wide, tall] = [columns.to - columns.from, rows.to - rows.from];
    const [full, high] = [wide, tall].map((side) => Math.ceil(side / model.multiple) * model.multiple);
    const seen = crop(planes, 3, width, height, [rows.from, rows.to], [columns.from, columns.to]);
    const fed = { image: new ort.Tensor("float32", filled(seen, 3, wide, tall), [batch, model.channels, high, full]) };
    if (model.levels) fed.sigma = sigmaOf(seen, level, strength, levels, [full, high], wide, tall);
    const start = performance.now();
    const answer = (await session.run(fed))[setting.output];
    ms += performance.now() - start;
    const inner = [rows.start - rows.from, rows.stop - rows.from];
    const data = crop(answer.data, 3, full, high, inner, [columns.start - columns.from, columns.stop - columns.from]);
    const tile = { left: columns.start, top: rows.start, width: columns.stop - columns.start, height: rows.stop - rows.start, data };
    if ((await each(tile, ms, i + 1, all.length)) === false) return;
  }
}
