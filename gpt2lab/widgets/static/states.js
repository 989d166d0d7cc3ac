import { t } from "./lib.js";

// The states of runs, as readers see them.

export const STATES = () => ({ starting: t("starting"), queued: t("queued"), running: t("running"), stopping: t("stopping"), stopped: t("stopped"), finished: t("finished"), failed: t("failed"), crashed: t("crashed") });
