const UNITS: [Intl.RelativeTimeFormatUnit, number][] = [
  ["day", 86_400],
  ["hour", 3_600],
  ["minute", 60],
];

interface Moments {
  justNow: string;
  verySoon: string;
}

/** Nothing shorter than a minute: what is shown is renewed only now and then. */
export function relativeTime(at: string, now: number, language: string, moments: Moments): string {
  const seconds = Math.round((Date.parse(at) - now) / 1000);
  const format = new Intl.RelativeTimeFormat(language, { numeric: "auto" });
  for (const [unit, length] of UNITS) {
    if (Math.abs(seconds) >= length) {
      return format.format(Math.round(seconds / length), unit);
    }
  }
  return seconds > 0 ? moments.verySoon : moments.justNow;
}

export function absoluteTime(at: string, language: string): string {
  return new Intl.DateTimeFormat(language, { dateStyle: "medium", timeStyle: "medium" }).format(
    new Date(at),
  );
}
