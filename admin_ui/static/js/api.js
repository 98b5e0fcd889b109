// Calls of this page's own server, which passes them on.
import { session } from './store.js';

/** An answer that was an error. */
export class ApiError extends Error {
  /**
   * @param {number} status
   * @param {string} code
   * @param {string} message
   * @param {string | null} param
   */
  constructor(status, code, message, param = null) {
    super(message);
    this.status = status;
    this.code = code;
    this.param = param;
  }
}

/** @param {Response} response */
export async function errorOf(response) {
  try {
    const { error } = await response.json();
    return new ApiError(response.status, error.code, error.message, error.param);
  } catch {
    return new ApiError(response.status, 'unreadable', `The server answered ${response.status}.`);
  }
}

/**
 * Sends a request to this page's own server.
 * @param {string} method
 * @param {string} path
 * @param {unknown} [body]
 * @param {{headers?: Record<string, string>, signal?: AbortSignal}} [options]
 * @returns {Promise<Response>}
 */
export async function send(method, path, body, options = {}) {
  /** @type {Record<string, string>} */
  const headers = { accept: 'application/json', ...options.headers };
  if (method !== 'GET' && session.value?.token) headers['x-mooring-token'] = session.value.token;
  if (body !== undefined) headers['content-type'] = 'application/json';
  let response;
  try {
    response = await fetch(path, {
      method,
      headers,
      body: body === undefined ? undefined : JSON.stringify(body),
      signal: options.signal,
      credentials: 'same-origin',
      redirect: 'error',
    });
  } catch (error) {
    if (options.signal?.aborted) throw error;
    throw new ApiError(0, 'unreachable', 'The UI does not answer. Is its process still running?');
  }
  if (!response.ok) {
    const failed = await errorOf(response);
    if (response.status === 401 && session.value?.token) session.value = null;
    throw failed;
  }
  return response;
}

/** Escapes a name for a path; slashes stay. @param {string} name */
export const inPath = (name) => name.split('/').map(encodeURIComponent).join('/');

/** @param {string} path @param {AbortSignal} [signal] @returns {Promise<any>} */
export async function get(path, signal) {
  return (await send('GET', `/api/${path}`, undefined, { signal })).json();
}

/**
 * A page of a list, and the cursor of the next one.
 * @param {string} path
 * @param {Record<string, string | number | null | undefined>} query
 * @param {AbortSignal} [signal]
 * @returns {Promise<{rows: any[], next: string | null}>}
 */
export async function page(path, query, signal) {
  const given = Object.entries(query).filter(([, value]) => value != null && value !== '');
  const search = new URLSearchParams(given.map(([name, value]) => [name, String(value)]));
  const response = await send('GET', `/api/${path}?${search}`, undefined, { signal });
  return { rows: await response.json(), next: response.headers.get('x-mooring-next') };
}

/** @param {string} method @param {string} path @param {unknown} [body] @param {AbortSignal} [signal] @returns {Promise<any>} */
export async function change(method, path, body, signal) {
  const response = await send(method, `/api/${path}`, body, { signal });
  return response.status === 204 ? null : response.json();
}

/** @param {string} path @param {unknown} [body] */
export const post = (path, body) => change('POST', path, body);
/** @param {string} path @param {unknown} body */
export const patch = (path, body) => change('PATCH', path, body);
/** @param {string} path */
export const remove = (path) => change('DELETE', path);
