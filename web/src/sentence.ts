// The relay's sentences also stand behind a colon in its log, so they start small and end bare.

export function capitalised(text: string): string {
  return text.charAt(0).toUpperCase() + text.slice(1);
}

/** A whole sentence. One that ends with an address stays bare: the full stop would be copied with it. */
export function sentence(text: string): string {
  const ended = /([.!?…][”"')]?|https?:\/\/\S+)$/.test(text);
  return capitalised(text) + (ended ? "" : ".");
}
