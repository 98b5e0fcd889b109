// The vendored libraries, under the names that the pages use.
export { h, render, Fragment } from '../vendor/preact.js';
export { useEffect, useLayoutEffect, useMemo, useRef, useState, useCallback } from '../vendor/preact-hooks.js';
export { signal, computed, effect, batch } from '../vendor/signals-core.js';
import '../vendor/signals.js';
import { h } from '../vendor/preact.js';
import htm from '../vendor/htm.js';

/** Tagged templates that make virtual nodes. */
export const html = htm.bind(h);
