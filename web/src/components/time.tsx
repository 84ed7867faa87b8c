import { LANGUAGE, texts } from "../texts.ts";
import { absoluteTime, relativeTime } from "../time.ts";

interface TimeProps {
  at: string;
  /** It is to come. */
  ahead?: boolean;
  say: (relative: string) => string;
}

export function Time({ at, ahead = false, say }: TimeProps) {
  return (
    <time dateTime={at} title={absoluteTime(at, LANGUAGE)}>
      {say(relativeTime(at, Date.now(), ahead, LANGUAGE, texts))}
    </time>
  );
}
