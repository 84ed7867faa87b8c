import { useCallback, useRef, useState } from "preact/hooks";

interface Said {
  n: number;
  text: string;
}

const KEPT = 3;

/** What a screen reader is told: each is news, though it says what was said before. */
export function useAnnouncements(): [Said[], (text: string) => void] {
  const [all, setAll] = useState<Said[]>([]);
  const count = useRef(0);
  const say = useCallback((text: string) => {
    count.current += 1;
    const said = { n: count.current, text };
    setAll((before) => [...before, said].slice(-KEPT));
  }, []);
  return [all, say];
}

export function Announcements({ all }: { all: Said[] }) {
  return (
    <div class="assistive" role="status" aria-atomic="false">
      {all.map(({ n, text }) => (
        <p key={n}>{text}</p>
      ))}
    </div>
  );
}
