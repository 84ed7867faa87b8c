// A Jira admin at the page: finds things by the names that a person or a screen reader finds them by.

import { until, within } from "./deadline.mjs";

const CLOSES_WITHIN_MS = 20_000;

export class Admin {
  // window: as Stage.open has it.
  static async open(stage, window) {
    return new Admin(await stage.open(window));
  }

  // place: where the page is, if that is not Jira's frame.
  constructor(view, place = view.frame) {
    this.view = view;
    this.frame = place;
  }

  button(name) {
    return this.frame.getByRole("button", { name, exact: true });
  }

  heading(name) {
    return this.frame.getByRole("heading", { name, exact: true });
  }

  get dialog() {
    return this.frame.getByRole("dialog");
  }

  get alert() {
    return this.frame.getByRole("alert");
  }

  card(gitlab) {
    return this.frame.getByRole("listitem").filter({ has: this.heading(addressOf(gitlab)) });
  }

  // A line of the checks when an instance is added.
  line(name) {
    const checks = this.dialog.getByRole("list", { name: "Checks" }).getByRole("listitem");
    return checks.filter({ has: this.frame.getByText(name, { exact: true }) });
  }

  // Waits until all these texts can be seen.
  async see(...texts) {
    await this.seeIn(this.frame.locator("body"), ...texts);
  }

  async seeIn(place, ...texts) {
    for (const text of texts) await place.getByText(text).filter({ visible: true }).first().waitFor();
  }

  // Types an address into the dialog and has it checked.
  async check(address) {
    await this.button("Add GitLab instance").click();
    await this.dialog.getByLabel("Address of the GitLab instance").fill(address);
    await this.dialog.getByRole("button", { name: "Check", exact: true }).click();
  }

  async confirm(name) {
    await this.dialog.getByRole("button", { name, exact: true }).click();
  }

  // To where one signs in. The instance was linked before the page opened, and has no groups.
  async goToSignIn(gitlab) {
    await this.button(`Link groups of ${addressOf(gitlab)}`).click();
    await this.heading("Sign in to GitLab").waitFor();
  }

  // The window in which one signs in.
  async openSignIn() {
    return this.view.popup(() => this.button("Sign in to GitLab").click());
  }

  async finishSignIn(popup) {
    await Promise.all([popup.waitForEvent("close"), popup.getByRole("button", { name: "Authorize" }).click()]);
    await this.see("Signed in as");
  }

  async signIn(gitlab) {
    await this.goToSignIn(gitlab);
    await this.finishSignIn(await this.openSignIn());
  }

  async closed(popup) {
    if (!popup.isClosed()) await within(CLOSES_WITHIN_MS, "end of the window", popup.waitForEvent("close"));
  }

  async search(text) {
    await this.frame.getByLabel("Search groups").fill(text);
  }

  group(fullName) {
    return this.frame.getByRole("checkbox", { name: fullName, exact: true });
  }

  // Or the opposite, if it is selected.
  async select(fullName) {
    await this.frame.getByText(fullName, { exact: true }).click();
  }

  // Finds groups by their names and selects them.
  async choose(...fullNames) {
    for (const fullName of fullNames) {
      await this.search(fullName.split(" / ").at(-1));
      await this.select(fullName);
    }
  }
}

// Waits until there are so many of them: what a click brings is drawn a moment later.
export async function counted(locator, wanted) {
  await until(`${wanted} of ${locator}`, async () => (await locator.count()) === wanted);
}

// A live region says it.
export async function heard(frame, role, said) {
  await frame.getByRole(role).filter({ hasText: said }).first().waitFor({ state: "attached" });
}

export function addressOf({ url }) {
  return url.replace("http://", "");
}
