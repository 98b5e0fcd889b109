// The last hour's figures: from the server, and from then on by the live state.
import { signal } from './lib.js';
import { get } from './api.js';
import { connection, deployments, devices, figures, live, session } from './store.js';

const EVERY_S = 5;
const KEPT = 720;

/** @typedef {{at: number[], series: Record<string, (number | null)[]>}} History */

export const history = signal(/** @type {History} */ ({ at: [], series: {} }));
/** Figures of single deployments, since this page was opened. */
export const ofDeployments = signal(/** @type {History} */ ({ at: [], series: {} }));

let fetched = false;

/** Asks the server for the last hour, once, and again after the feed was away. */
export async function fetchHistory() {
  if (fetched) return;
  fetched = true;
  try {
    const found = await get('history?minutes=60');
    history.value = { at: found.at, series: found.series };
  } catch {
    fetched = false;
  }
}

/** @param {History} before @param {number} at @param {Record<string, number | null>} row @returns {History} */
function appended(before, at, row) {
  const names = new Set([...Object.keys(before.series), ...Object.keys(row)]);
  const cut = Math.max(0, before.at.length + 1 - KEPT);
  /** @type {Record<string, (number | null)[]>} */
  const series = {};
  for (const name of names) {
    const values = before.series[name] ?? new Array(before.at.length).fill(null);
    series[name] = [...values, row[name] ?? null].slice(cut);
  }
  return { at: [...before.at, at].slice(cut), series };
}

/** KV in use on a device, in bytes. @param {any} device */
export const kvInUse = (device) => Object.values(device.segments ?? {}).reduce((sum, each) => sum + (each.in_use_bytes ?? 0), 0);

function sample() {
  if (!session.peek() || !live.peek().state) return;
  if (connection.peek() !== 'live') {
    fetched = false;
    return;
  }
  if (!fetched) fetchHistory();
  const at = Date.now() / 1000;
  const now = figures.peek();
  /** @type {Record<string, number | null>} */
  const row = {};
  for (const name of ['tokens_per_s', 'ttft_p50_s', 'ttft_p95_s', 'running', 'waiting']) row[name] = now[name] ?? null;
  for (const [name, device] of Object.entries(devices.peek())) {
    row[`utilization:${name}`] = device.utilization ?? null;
    row[`kv_in_use:${name}`] = kvInUse(device);
  }
  const last = history.peek().at.at(-1) ?? 0;
  if (at - last >= EVERY_S * 0.9) history.value = appended(history.peek(), at, row);
  /** @type {Record<string, number | null>} */
  const each = {};
  for (const [name, deployment] of Object.entries(deployments.peek())) {
    each[`running:${name}`] = deployment.num_running ?? 0;
    each[`waiting:${name}`] = deployment.num_waiting ?? 0;
  }
  ofDeployments.value = appended(ofDeployments.peek(), at, each);
}

setInterval(sample, EVERY_S * 1000);
