"""Write, audit, publish: what a result has to fulfil before readers see it."""
