// Sets the chosen scheme before anything is drawn.
const KEY = 'mooring-theme';

/** @typedef {'auto' | 'light' | 'dark'} Theme */

/** @returns {Theme} */
export function storedTheme() {
  const found = localStorage.getItem(KEY);
  return found === 'light' || found === 'dark' ? found : 'auto';
}

/** @param {Theme} theme */
export function applyTheme(theme) {
  if (theme === 'auto') delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
}

/** @param {Theme} theme */
export function storeTheme(theme) {
  if (theme === 'auto') localStorage.removeItem(KEY);
  else localStorage.setItem(KEY, theme);
  applyTheme(theme);
}

applyTheme(storedTheme());
