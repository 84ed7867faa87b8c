import type { GroupPage } from "../gitlab.ts";
import { texts } from "../texts.ts";
import { Button } from "./button.tsx";

interface PaginationProps {
  found: GroupPage;
  onPage: (page: number) => void;
}

export function Pagination({ found: { page, nextPage, totalPages }, onPage }: PaginationProps) {
  if (page === 1 && nextPage === null) {
    return null;
  }
  return (
    <nav class="pagination" aria-label={texts.pages}>
      <Button disabled={page === 1} onClick={() => onPage(page - 1)}>
        {texts.previousPage}
      </Button>
      <span>{texts.pageOf(page, totalPages)}</span>
      <Button disabled={nextPage === null} onClick={() => onPage(page + 1)}>
        {texts.nextPage}
      </Button>
    </nav>
  );
}
