// What a dry run says: whether a model would fit on each device, and what would have to go.
import { html, useEffect, useState } from '../lib.js';
import { change } from '../api.js';
import { duration, size } from '../format.js';
import { Badge } from './parts.js';
import { useRested } from './table.js';

const VERDICTS = /** @type {Record<string, string>} */ ({ fits: 'fits', would_displace: 'others would sleep', waits: 'waits', never: 'does not fit' });

/**
 * The dry run of what is typed, once it rests.
 * @param {any} question - null for none
 * @returns {{answer: any, error: any, busy: boolean}}
 */
export function useFit(question) {
  const [found, setFound] = useState({ answer: null, error: null, busy: false });
  const asked = useRested(question ? JSON.stringify(question) : '', 500);
  useEffect(() => {
    if (!asked) {
      setFound({ answer: null, error: null, busy: false });
      return undefined;
    }
    const abort = new AbortController();
    setFound((before) => ({ ...before, busy: true }));
    change('POST', 'fit', JSON.parse(asked), abort.signal).then(
      (answer) => setFound({ answer, error: null, busy: false }),
      (error) => { if (!abort.signal.aborted) setFound({ answer: null, error, busy: false }); },
    );
    return () => abort.abort();
  }, [asked]);
  return found;
}

/** @param {{fit: ReturnType<typeof useFit>, empty: string}} props */
export function Fit({ fit, empty }) {
  const rows = Object.entries(fit.answer?.devices ?? {});
  return html`<div class="stack" aria-live="polite" aria-busy=${fit.busy}>
    ${fit.error && html`<p class="error-text">${fit.error.message}</p>`}
    ${!rows.length && !fit.error && html`<p class="soft small">${fit.busy ? 'Looking at its files …' : empty}</p>`}
    ${rows.map(([device, each]) => html`<div class="fit" key=${device}>
      <div class="row spread"><b>${device}</b><${Badge} state=${each.verdict}>${VERDICTS[each.verdict] ?? each.verdict}<//></div>
      <p class="small soft">${each.message}</p>
      <dl class="pairs small">
        ${each.weights_bytes != null && html`<dt>Weights</dt><dd>${size(each.weights_bytes)}</dd>`}
        ${each.kv_longest_bytes != null && html`<dt>KV of the longest text</dt><dd>${size(each.kv_longest_bytes)}</dd>`}
        ${each.kv_guarantee_bytes ? html`<dt>KV guarantee</dt><dd>${size(each.kv_guarantee_bytes)}</dd>` : null}
        ${each.free_bytes != null && html`<dt>Free now</dt><dd>${size(each.free_bytes)}</dd>`}
        ${each.leaving?.length > 0 && html`<dt>Would sleep</dt><dd>${each.leaving.map((/** @type {any} */ one) => `${one.deployment} (${size(one.freed_bytes)})`).join(', ')}</dd>`}
        ${each.takes_s != null && html`<dt>Takes about</dt><dd>${duration(each.takes_s)}</dd>`}
      </dl>
    </div>`)}
  </div>`;
}
