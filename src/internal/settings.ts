/** Time limits as they are given, and as they are used: in milliseconds, with a default for each. */

import * as Duration from "effect/Duration"

export const connectionDefaults = {
  writeTimeout: 120_000,
  idleTimeout: 3_600_000,
  closeTimeout: 5_000
}

export const settingsOf = <K extends string>(
  defaults: Readonly<Record<K, number>>,
  options: { readonly [_ in NoInfer<K>]?: Duration.DurationInput | undefined }
): Readonly<Record<K, number>> => {
  const settings: Record<K, number> = { ...defaults }
  for (const name of Object.keys(defaults) as Array<K>) {
    const given: Duration.DurationInput | undefined = options[name]
    if (given !== undefined) {
      settings[name] = Duration.toMillis(given)
    }
  }
  return settings
}
