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

async function pixelsOf(blob) {
  const bitmap = await createImageBitmap(blob);
  const context = canvasOf(bitmap.width, bitmap.height).getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  return context.getImageData(0, 0, bitmap.width, bitmap.height);
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
