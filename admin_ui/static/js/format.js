// Numbers, sizes and times as people read them.

const UNITS = ['B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB'];
export const NONE = '–';

/**
 * A size with its unit, three digits long: `1.25 GiB`.
 * @param {number | null | undefined} bytes
 */
export function size(bytes) {
  if (bytes == null) return NONE;
  let value = Math.abs(bytes);
  let unit = 0;
  while (value >= 1024 && unit < UNITS.length - 1) {
    value /= 1024;
    unit += 1;
  }
  const digits = unit === 0 || value >= 100 ? 0 : value >= 10 ? 1 : 2;
  return `${bytes < 0 ? '-' : ''}${value.toFixed(digits)} ${UNITS[unit]}`;
}

/**
 * A size in one unit for a whole column: `512.0`.
 * @param {number} bytes
 */
export function mib(bytes) {
  const value = bytes / 1048576;
  return value.toLocaleString('en', { minimumFractionDigits: 1, maximumFractionDigits: 1 });
}

/**
 * Seconds as a duration: `240 ms`, `1.2 s`, `3 min 5 s`, `2 h 10 min`.
 * @param {number | null | undefined} seconds
 * @returns {string}
 */
export function duration(seconds) {
  if (seconds == null || !Number.isFinite(seconds)) return NONE;
  if (seconds < 0) return `-${duration(-seconds)}`;
  if (seconds < 0.0005) return '0 ms';
  if (seconds < 0.9995) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 9.95) return `${seconds.toFixed(1)} s`;
  if (seconds < 59.5) return `${Math.round(seconds)} s`;
  const whole = Math.round(seconds);
  if (whole < 3600) return `${Math.floor(whole / 60)} min${whole % 60 ? ` ${whole % 60} s` : ''}`;
  const minutes = Math.floor((whole % 3600) / 60);
  if (whole < 86400) return `${Math.floor(whole / 3600)} h${minutes ? ` ${minutes} min` : ''}`;
  return `${Math.floor(whole / 86400)} d ${Math.floor((whole % 86400) / 3600)} h`;
}

/**
 * How long ago a time was, in one word or two: `now`, `12 s`, `3 min`, `2 h`, `5 d`.
 * @param {number} at - Unix seconds
 * @param {number} now - Unix seconds
 */
export function ago(at, now) {
  const seconds = Math.max(0, now - at);
  if (seconds < 2) return 'now';
  if (seconds < 60) return `${Math.floor(seconds)} s ago`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ago`;
  if (seconds < 86400) return `${Math.floor(seconds / 3600)} h ago`;
  return `${Math.floor(seconds / 86400)} d ago`;
}

/**
 * A number with three significant digits, thousands set apart.
 * @param {number | null | undefined} value
 */
export function number(value) {
  if (value == null || !Number.isFinite(value)) return NONE;
  const size = Math.abs(value);
  if (size >= 100 || Number.isInteger(value)) return Math.round(value).toLocaleString('en');
  return value.toLocaleString('en', { maximumSignificantDigits: 3 });
}

/**
 * A share as a percentage; 100 % only if it is all.
 * @param {number | null | undefined} share
 */
export function percent(share) {
  if (share == null || !Number.isFinite(share)) return NONE;
  const value = share * 100;
  if (value >= 100 || value <= -100) return `${Math.round(value)} %`;
  const digits = Math.abs(value) >= 99 || (Math.abs(value) > 0 && Math.abs(value) < 10) ? 1 : 0;
  return `${(Math.floor(value * 10 ** digits + 1e-6) / 10 ** digits).toFixed(digits)} %`;
}

/**
 * A time of day: `14:05:09`.
 * @param {number | string} at - Unix seconds, or ISO 8601
 */
export function clockTime(at) {
  const time = typeof at === 'number' ? new Date(at * 1000) : new Date(at);
  return time.toLocaleTimeString('en-GB');
}

/**
 * A day and time: `30 Nov 2026, 14:05`.
 * @param {number | string} at - Unix seconds, or ISO 8601
 */
export function dayTime(at) {
  const time = typeof at === 'number' ? new Date(at * 1000) : new Date(at);
  return time.toLocaleString('en-GB', { dateStyle: 'medium', timeStyle: 'short' });
}

/**
 * Unix seconds of a time in ISO 8601.
 * @param {string} at
 */
export const unix = (at) => Date.parse(at) / 1000;

/**
 * A number of things with its noun: `1 key`, `2 keys`.
 * @param {number} count
 * @param {string} noun
 */
export function counted(count, noun) {
  return `${count.toLocaleString('en')} ${noun}${count === 1 ? '' : noun.endsWith('s') ? 'es' : 's'}`;
}

/**
 * A size that somebody typed, in bytes: `512MiB`, `1.5 GiB`, `1000`. NaN if it is none.
 * @param {string} text
 */
export function parseSize(text) {
  const found = /^\s*(\d+(?:\.\d+)?)\s*(?:([kmgt])(i)?b?|b)?\s*$/i.exec(text);
  if (!found) return NaN;
  const power = found[2] ? 'kmgt'.indexOf(found[2].toLowerCase()) + 1 : 0;
  return Math.round(Number(found[1]) * (found[3] || !found[2] ? 1024 : 1000) ** power);
}

/** A field's name as a label: `kv_cap_bytes` is `KV cap`. @param {string} name */
export function label(name) {
  const words = name.replace(/^num_/, '').replace(/_(bytes|s)$/, '').split('_');
  const text = words.map((word) => (['kv', 'ttft', 'tpot', 'slo', 'id'].includes(word) ? word.toUpperCase() : word)).join(' ');
  return text[0].toUpperCase() + text.slice(1);
}
