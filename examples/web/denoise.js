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

// The session of a setting; the previous one is released, because each holds its own kernels and memory.
async function sessionOf(setting) {
  if (held.setting !== setting) {
    await held.session?.release();
    held = { setting: null, session: null };
    const graph = await bytes(`${setting.output}.onnx`);
    const session = await ort.InferenceSession.create(graph, {
      executionProviders: ["wasm"],
      externalData: [{ path: "kernels.bin", data: kernels }],
    });
    held = { setting, session };
  }
  return held.session;
}

// Tiles that overlap by as far as the network sees, so that the result has no seams.
function tiles(width, height, radius) {
  const side = Math.ceil(TILE / model.sub) * model.sub;
  const halo = side < Math.max(width, height) ? radius : 0;
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

// Denoises three planes of floats in [0, 1], tile by tile: `each` gets {left, top, width, height, data}, the milliseconds of the
// network so far, and how many tiles of how many are done; it stops where `each` gives false. `level`: of 255, -1 for unknown.
export async function denoise(planes, width, height, place, level, each) {
  const setting = model.settings[place];
  const session = await sessionOf(setting);
  const all = tiles(width, height, setting.radius);
  const batch = 3 / model.channels;
  let ms = 0;
  for (const [i, { rows, columns }] of all.entries()) {
    const [wide, tall] = [columns.to - columns.from, rows.to - rows.from];
    const seen = crop(planes, 3, width, height, [rows.from, rows.to], [columns.from, columns.to]);
    const fed = { image: new ort.Tensor("float32", seen, [batch, model.channels, tall, wide]) };
    if (model.level) fed.sigma = new ort.Tensor("float32", new Float32Array(batch).fill(level), [batch, 1, 1, 1]);
    const start = performance.now();
    const answer = (await session.run(fed))[setting.output];
    ms += performance.now() - start;
    const inner = [rows.start - rows.from, rows.stop - rows.from];
    const data = crop(answer.data, 3, wide, tall, inner, [columns.start - columns.from, columns.stop - columns.from]);
    const tile = { left: columns.start, top: rows.start, width: columns.stop - columns.start, height: rows.stop - rows.start, data };
    if ((await each(tile, ms, i + 1, all.length)) === false) return;
  }
}
