// Messages at the edge, said to screen readers too.
import { html } from '../lib.js';
import { toasts, unsay } from '../store.js';

export const Toasts = () => html`<div class="toasts" role="status" aria-live="polite">
  ${toasts.value.map((each) => html`<div key=${each.id} class=${`toast ${each.kind}`}>
    <p>${each.text}</p><button onClick=${() => unsay(each.id)}>Close</button>
  </div>`)}
</div>`;
