// Tables, and lists that the server pages.
import { html, useCallback, useEffect, useRef, useState } from '../lib.js';
import { page } from '../api.js';
import { Problem, Skeleton } from './parts.js';

/**
 * @typedef {{key: string, title: string, num?: boolean, wide?: boolean, cell: (row: any) => any, head?: boolean}} Column
 */

/**
 * @param {{caption: string, columns: Column[], rows: any[], rowKey: (row: any) => string, foot?: any}} props
 */
export const Table = ({ caption, columns, rows, rowKey, foot }) => html`<div class="scroll" tabindex="0" role="region" aria-label=${caption}>
  <table class="rows-hover">
    <caption class="visually-hidden">${caption}</caption>
    <thead><tr>${columns.map((each) => html`<th key=${each.key} scope="col" class=${names(each)}>${each.title || html`<span class="visually-hidden">Actions</span>`}</th>`)}</tr></thead>
    <tbody>${rows.map((row) => html`<tr key=${rowKey(row)}>
      ${columns.map((each) => (each.head ? html`<th key=${each.key} scope="row" class=${names(each)}>${each.cell(row)}</th>` : html`<td key=${each.key} class=${names(each)}>${each.cell(row)}</td>`))}
    </tr>`)}</tbody>
    ${foot}
  </table>
</div>`;

/** @param {Column} column */
const names = (column) => [column.key === 'why' && 'why', column.num && 'num', column.wide && 'wide-only'].filter(Boolean).join(' ') || undefined;

/**
 * Rows of a list that the server pages, with the names of what comes before kept, so that one can go back.
 * @param {string} path
 * @param {Record<string, string | number | null>} query
 * @returns {{rows: any[] | null, error: any, next: (() => void) | null, back: (() => void) | null, reload: () => void, number: number}}
 */
export function usePages(path, query) {
  const [cursors, setCursors] = useState(/** @type {(string | null)[]} */ ([null]));
  const [found, setFound] = useState(/** @type {{rows: any[] | null, next: string | null}} */ ({ rows: null, next: null }));
  const [error, setError] = useState(/** @type {any} */ (null));
  const [round, setRound] = useState(0);
  const asked = JSON.stringify([path, query]);
  const before = useRef(asked);
  useEffect(() => {
    if (before.current !== asked) {
      before.current = asked;
      if (cursors.length > 1) {
        setCursors([null]);
        return undefined;
      }
    }
    const abort = new AbortController();
    page(path, { ...query, after: cursors[cursors.length - 1] }, abort.signal).then(
      (answer) => { setFound(answer); setError(null); },
      (failed) => { if (!abort.signal.aborted) setError(failed); },
    );
    return () => abort.abort();
  }, [asked, cursors, round]);
  const reload = useCallback(() => setRound((value) => value + 1), []);
  return {
    ...found,
    error,
    next: found.next ? () => setCursors([...cursors, found.next]) : null,
    back: cursors.length > 1 ? () => setCursors(cursors.slice(0, -1)) : null,
    reload,
    number: cursors.length,
  };
}

/**
 * What stands above or in place of the rows of a paged list, and the buttons below.
 * @param {{pages: ReturnType<typeof usePages>, children: any, empty: any}} props
 */
export function Paged({ pages, children, empty }) {
  if (pages.error) return html`<div class="pad"><${Problem} error=${pages.error} retry=${pages.reload} /></div>`;
  if (!pages.rows) return html`<${Skeleton} />`;
  if (!pages.rows.length && !pages.back) return empty;
  return html`${children}
    ${(pages.next || pages.back) && html`<nav class="row spread small pager" aria-label="Pages of the list">
      <span class="faint">Page ${pages.number}</span>
      <span class="row tight">
        <button class="small" disabled=${!pages.back} onClick=${pages.back}>Previous</button>
        <button class="small" disabled=${!pages.next} onClick=${pages.next}>Next</button>
      </span>
    </nav>`}`;
}

/** A text that follows what is typed after a short rest. @param {string} value @param {number} [restMs] */
export function useRested(value, restMs = 250) {
  const [rested, setRested] = useState(value);
  useEffect(() => {
    const timer = setTimeout(() => setRested(value), restMs);
    return () => clearTimeout(timer);
  }, [value, restMs]);
  return rested;
}
