export function Progress({ text, done, total }: { text: string; done: number; total: number }) {
  return (
    <div class="progress">
      <p role="status">{text}</p>
      <progress aria-label={text} value={done} max={total} />
    </div>
  );
}
