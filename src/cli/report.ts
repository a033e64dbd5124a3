/** `rlar report`: a run, or several, as a page to look at. */
import { writeReport } from "../dashboard/report.js";

/** Options of `rlar report`. */
export interface ReportOptions {
  out?: string;
  json?: boolean;
}

export async function report(runs: readonly string[], { out, json }: ReportOptions): Promise<void> {
  const file = await writeReport(runs, out === undefined ? {} : { out });
  process.stdout.write(json ? `${JSON.stringify({ file })}\n` : `${file}\n`);
}
