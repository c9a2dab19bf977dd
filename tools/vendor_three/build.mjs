// Bundle three.js for the page: one classic script that defines the global THREE, and its licence.
import { copyFileSync, readFileSync } from "node:fs";
import { build } from "esbuild";

const assets = new URL("../../src/undula/viz/assets/", import.meta.url).pathname;
const { version } = JSON.parse(readFileSync("node_modules/three/package.json", "utf8"));

await build({
  entryPoints: ["names.mjs"],
  bundle: true,
  minify: true,
  charset: "ascii",
  format: "iife",
  globalName: "THREE",
  target: ["chrome90", "firefox113", "safari16.4"],
  legalComments: "none",
  banner: { js: `/* three.js ${version}, MIT licence: three.LICENSE.txt; made by tools/vendor_three */` },
  outfile: `${assets}three.bundle.js`,
});
copyFileSync("node_modules/three/LICENSE", `${assets}three.LICENSE.txt`);
