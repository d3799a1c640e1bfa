package idemtest

import (
	"runtime"
	"strings"
)

// Where an attempt is.
const (
	inStep  = "step"
	inCall  = "call"
	between = "between" // outside of its steps and calls
)

// A place is where an attempt has sent a request.
type place struct {
	kind string // "": not known, as when the attempt has not waited for the answer
	line string // file:line of the user's function that the package has called
	done int    // how many steps and calls were recorded

	begun string // the call that was recorded to have begun
}

// place finds out where the newest attempt is that waits for HTTP, and what is recorded of
// its operation.
func (s *procedureStorm) place(c *scene) place {
	p := c.whereAttemptsAre(allStacks())
	done, begun, err := s.recorded(c.id)
	if err != nil {
		return place{}
	}
	p.done, p.begun = len(done), begun
	return p
}

// label is that of the step or call that the place is in, or behind: what has ended is
// recorded when the next one begins.
func (p place) label(labels []string) string {
	switch {
	case p.kind == inCall || p.kind == "":
		return p.begun
	case p.done < len(labels):
		return labels[p.done]
	}
	return "" // an attempt has failed before the step was recorded
}

func (c *scene) whereAttemptsAre(stacks map[string]string) (found place) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, a := range c.attempts {
		stack := stacks[a.goroutine]
		if p := readStack(stack); p.kind != "" && (found.kind == "" || strings.Contains(stack, "net/http.")) {
			found = p
		}
	}
	return found
}

// allStacks are those of all goroutines, by their numbers.
func allStacks() map[string]string {
	buf := make([]byte, 1<<20)
	n := runtime.Stack(buf, true)
	for n == len(buf) {
		buf = make([]byte, 2*len(buf))
		n = runtime.Stack(buf, true)
	}
	stacks := make(map[string]string)
	for stack := range strings.SplitSeq(string(buf[:n]), "\n\n") {
		number, _, _ := strings.Cut(strings.TrimPrefix(stack, "goroutine "), " ")
		stacks[number] = stack
	}
	return stacks
}

// readStack looks, from the innermost function on, for the first one of this module that
// has called one of the user: of a step, of a call, or the procedure's.
func readStack(stack string) place {
	line := ""
	kind := ""
	for text := range strings.Lines(stack) {
		text = strings.TrimRight(text, "\n")
		if file, isFile := strings.CutPrefix(text, "\t"); isFile {
			line, _, _ = strings.Cut(file, " +0x")
			continue
		}
		switch {
		case strings.HasPrefix(text, module+".Step["):
			kind = inStep
		case strings.HasPrefix(text, module+".Call["):
			kind = inCall
		case strings.HasPrefix(text, module+"/idemtest."):
			kind = between
		}
		if kind != "" { // line is of the function before
			return place{kind: kind, line: shorten(line)}
		}
	}
	return place{}
}
