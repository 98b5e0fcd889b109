// What the pages use of the vendored libraries, for `tsc --checkJs`.
export type Node = any;
export function h(type: any, props?: any, ...children: any[]): Node;
export function render(node: Node, into: Element): void;
export const Fragment: any;
export function html(strings: TemplateStringsArray, ...values: any[]): Node;
export function useEffect(effect: () => void | (() => void), inputs?: readonly unknown[]): void;
export function useLayoutEffect(effect: () => void | (() => void), inputs?: readonly unknown[]): void;
export function useMemo<T>(make: () => T, inputs: readonly unknown[]): T;
export function useRef<T>(initial: T): { current: T };
export function useState<T>(initial: T | (() => T)): [T, (next: T | ((before: T) => T)) => void];
export function useCallback<T extends (...given: any[]) => any>(callback: T, inputs: readonly unknown[]): T;
export interface Signal<T> {
  value: T;
  peek(): T;
}
export interface ReadonlySignal<T> {
  readonly value: T;
  peek(): T;
}
export function signal<T>(value: T): Signal<T>;
export function computed<T>(make: () => T): ReadonlySignal<T>;
export function effect(run: () => void | (() => void)): () => void;
export function batch<T>(run: () => T): T;
