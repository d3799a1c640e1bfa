package report

import "strings"

// Typed is what one types to have a command of this program run: a target of the
// Makefile, where it has one.
func Typed(command string) string {
	target, args := "", []string(nil)
	switch fields := strings.Fields(command); {
	case len(fields) > 1 && fields[0] == "bench" && fields[1] == "run":
		target, args = "make bench", fields[2:]
	case len(fields) > 1 && fields[0] == "bench" && fields[1] == "scale":
		target, args = scaleTarget(fields[2:])
	default:
		return command
	}
	if len(args) > 0 {
		target += " BENCH='" + strings.Join(args, " ") + "'"
	}
	return target
}

// scaleTarget knows the flags that the Makefile sets itself.
func scaleTarget(args []string) (target string, others []string) {
	target = "make bench-scale"
	for i := 0; i < len(args); i++ {
		switch {
		case args[i] == "-rows" && i+1 < len(args):
			i++
			target += " ROWS=" + args[i]
		case !strings.HasPrefix(args[i], "-kept="):
			others = append(others, args[i])
		}
	}
	return target, others
}
