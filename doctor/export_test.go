package doctor

// CheckAt is Check with the clock of a machine.
var CheckAt = check
