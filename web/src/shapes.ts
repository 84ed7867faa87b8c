// What an answer must look like before the page believes it: whatever stands between the browser and the relay can
// answer in its place.

export type Shape<T> = (value: unknown) => value is T;

const shape = <T>(test: (value: unknown) => boolean) => test as Shape<T>;

export const text = shape<string>((value) => typeof value === "string");
export const number = shape<number>((value) => typeof value === "number");
export const flag = shape<boolean>((value) => typeof value === "boolean");

/** An act that tells no more than that it is done. */
export const nothing = shape<void>(() => true);

export function orNull<T>(of: Shape<T>) {
  return shape<T | null>((value) => value === null || of(value));
}

/** Null or left out, which reads alike. */
export function orNothing<T>(of: Shape<T>) {
  return shape<T | null>((value) => value == null || of(value));
}

/** Left out by who has nothing to say. */
export function orMissing<T>(of: Shape<T>) {
  return shape<T | undefined>((value) => value === undefined || of(value));
}

export function oneOf<T extends string | boolean>(words: readonly T[]) {
  return shape<T>((value) => words.some((word) => word === value));
}

export function listOf<T>(of: Shape<T>) {
  return shape<T[]>((value) => Array.isArray(value) && value.every(of));
}

/** More than these is no matter: a newer relay may say more. */
export function record<T extends object>(fields: { [Name in keyof T]-?: Shape<T[Name]> }) {
  return shape<T>(
    (value) =>
      typeof value === "object" &&
      value !== null &&
      Object.entries<Shape<unknown>>(fields).every(([name, of]) =>
        of((value as Record<string, unknown>)[name]),
      ),
  );
}

/** What an answer says, if it is JSON. */
export function parsed(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}
