import { LANGUAGE, texts } from "../texts.ts";
import { absoluteTime, relativeTime } from "../time.ts";

export function Time({ at, say }: { at: string; say: (relative: string) => string }) {
  return (
    <time dateTime={at} title={absoluteTime(at, LANGUAGE)}>
      {say(relativeTime(at, Date.now(), LANGUAGE, texts))}
    </time>
  );
}
