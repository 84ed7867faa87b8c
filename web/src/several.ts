// The same act on several things, a few at a time, and what came of each.

import { useEffect, useRef, useState } from "preact/hooks";
import type { Cause } from "./api.ts";

const AT_ONCE = 3;

export interface Outcome {
  id: number;
  name: string;
  /** Why it failed. */
  cause: Cause | null;
}

export interface Several {
  /** While it goes on. */
  progress: { done: number; total: number } | null;
  /** Only what is under way is waited for. */
  stopping: boolean;
  outcomes: Outcome[];
  /** Acts on each item; null says that nothing came of it, and no other is begun. */
  run<T>(items: T[], act: (item: T) => Promise<Outcome | null>): Promise<void>;
  /** Begins no other; resolves when those under way are answered. */
  stop(): Promise<void>;
  /** Forgets what came of it, unless it goes on. */
  clear(): void;
}

export function useSeveral(): Several {
  const [progress, setProgress] = useState<Several["progress"]>(null);
  const [stopping, setStopping] = useState(false);
  const [outcomes, setOutcomes] = useState<Outcome[]>([]);
  const waiting = useRef<unknown[]>([]);
  const running = useRef<Promise<unknown> | null>(null);

  const run = async <T>(items: T[], act: (item: T) => Promise<Outcome | null>) => {
    const total = items.length;
    const queue = [...items];
    let done = 0;
    const worker = async () => {
      for (let item = queue.shift(); item !== undefined; item = queue.shift()) {
        const outcome = await act(item);
        if (outcome) {
          done += 1;
          setOutcomes((before) => [...before, outcome]);
          setProgress({ done, total });
        } else {
          queue.length = 0;
        }
      }
    };
    waiting.current = queue;
    setOutcomes([]);
    setStopping(false);
    setProgress({ done, total });
    running.current = Promise.all(Array.from({ length: AT_ONCE }, worker));
    await running.current;
    running.current = null;
    setProgress(null);
  };

  const stop = async () => {
    setStopping(true);
    waiting.current.length = 0;
    await running.current;
  };

  const clear = () => {
    if (!running.current) {
      setOutcomes([]);
    }
  };

  useEffect(
    () => () => {
      waiting.current.length = 0;
    },
    [],
  );

  return { progress, stopping, outcomes, run, stop, clear };
}

/** Leaves when what is under way is answered, so that nothing goes on unseen; asked again, at once. */
export function useLeave({ stop }: Several, onLeave: () => void): () => Promise<void> {
  const asked = useRef(false);
  const gone = useRef(false);
  // The view may have gone by itself meanwhile.
  useEffect(
    () => () => {
      gone.current = true;
    },
    [],
  );
  return async () => {
    if (!asked.current) {
      asked.current = true;
      await stop();
    }
    if (!gone.current) {
      gone.current = true;
      onLeave();
    }
  };
}
