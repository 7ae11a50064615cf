"use strict";
// What pages with one image, before and after, share: pixels, noise, quality, the slider and the table of facts.
const $ = (id) => document.getElementById(id);

const say = (text, error = false) => {
  $("message").textContent = text;
  $("message").classList.toggle("error", error);
};

// Gaussian noise by Box and Muller from a fixed seed, clipped and rounded as a file is.
function addNoise(pixels, sigma) {
  let seed = 1;
  const uniform = () => ((seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0) + 0.5) / 2 ** 32;
  const out = new ImageData(new Uint8ClampedArray(pixels.data), pixels.width, pixels.height);
  for (let i = 0; i < out.data.length; i += 4) {
    for (let c = 0; c < 3; c++) {
      const z = Math.sqrt(-2 * Math.log(uniform())) * Math.cos(2 * Math.PI * uniform());
      out.data[i + c] = Math.round(pixels.data[i + c] + sigma * z);
    }
  }
  return out;
}

function psnr(a, b) {
  let sum = 0;
  for (let i = 0; i < a.data.length; i += 4) for (let c = 0; c < 3; c++) sum += (a.data[i + c] - b.data[i + c]) ** 2;
  const error = sum / ((a.data.length / 4) * 3);
  return error ? 10 * Math.log10(255 ** 2 / error) : Infinity;
}

// PSNR of both against the clean image, in words.
function gain(noisy, denoised, clean) {
  const before = psnr(noisy, clean);
  return `${before === Infinity ? "∞" : before.toFixed(2)} → ${psnr(denoised, clean).toFixed(2)} dB`;
}

function canvasOf(width, height) {
  return Object.assign(document.createElement("canvas"), { width, height });
}

// The pixels of an image, or its middle if it has more than so many; `whole` then says how large it is.
async function pixelsOf(blob, most = Infinity) {
  const bitmap = await createImageBitmap(blob);
  const share = Math.min(1, Math.sqrt(most / (bitmap.width * bitmap.height)));
  const [width, height] = [Math.round(share * bitmap.width), Math.round(share * bitmap.height)];
  const context = canvasOf(width, height).getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, Math.floor((width - bitmap.width) / 2), Math.floor((height - bitmap.height) / 2));
  return Object.assign(context.getImageData(0, 0, width, height), { whole: share < 1 ? `${bitmap.width}x${bitmap.height}` : "" });
}

function showFacts(facts) {
  $("facts").replaceChildren(
    ...Object.entries(facts).map(([name, value]) => {
      const pair = document.createElement("div");
      for (const [tag, text] of [["dt", name], ["dd", value]]) {
        pair.append(Object.assign(document.createElement(tag), { textContent: text }));
      }
      return pair;
    }),
  );
}

// Puts the edge between before and after where the slider is.
function compare() {
  const share = Number($("compare").value);
  $("after").style.clipPath = `inset(0 0 0 ${share}%)`;
  $("edge").style.left = `${share}%`;
}
