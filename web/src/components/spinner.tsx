export function Spinner() {
  return <span class="spinner" aria-hidden="true" />;
}

export function Loading({ text }: { text: string }) {
  return (
    <p class="loading" role="status">
      <Spinner />
      {text}
    </p>
  );
}
