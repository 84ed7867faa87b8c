const UNITS: [Intl.RelativeTimeFormatUnit, number][] = [
  ["day", 86_400],
  ["hour", 3_600],
  ["minute", 60],
];

interface Moments {
  justNow: string;
  verySoon: string;
}

/**
 * Nothing shorter than a minute: what is shown is renewed only now and then. `ahead`: it is to come. What the clocks of
 * the browser and the relay make of it otherwise is now.
 */
export function relativeTime(
  at: string,
  now: number,
  ahead: boolean,
  language: string,
  moments: Moments,
): string {
  const away = Math.round((Date.parse(at) - now) / 1000);
  const seconds = ahead ? Math.max(away, 0) : Math.min(away, 0);
  const format = new Intl.RelativeTimeFormat(language, { numeric: "auto" });
  for (const [unit, length] of UNITS) {
    if (Math.abs(seconds) >= length) {
      return format.format(Math.round(seconds / length), unit);
    }
  }
  return ahead ? moments.verySoon : moments.justNow;
}

export function absoluteTime(at: string, language: string): string {
  return new Intl.DateTimeFormat(language, { dateStyle: "medium", timeStyle: "medium" }).format(
    new Date(at),
  );
}
