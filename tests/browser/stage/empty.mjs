// Empties the folder of the screenshots, so that only what the run to come has seen lies there.

import { rm } from "node:fs/promises";
import { SCREENSHOTS } from "./browser.mjs";

await rm(SCREENSHOTS, { recursive: true, force: true });
