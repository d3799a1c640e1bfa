package main_test

import (
	"io"
	"os"
	"strings"
	"syscall"
	"testing"
	"unicode"
	"unicode/utf8"
	"unsafe"

	"github.com/pgidem/idempotency/internal/pgtest"
)

// onTerminal is what the command writes to a terminal so wide, line by line.
func onTerminal(t *testing.T, columns uint16, env []string, args ...string) (lines []string) {
	t.Helper()
	screen, terminal := openTerminal(t)
	size := [4]uint16{24, columns}
	if _, _, errno := syscall.Syscall(syscall.SYS_IOCTL, terminal.Fd(), syscall.TIOCSWINSZ, uintptr(unsafe.Pointer(&size))); errno != 0 {
		t.Fatal(errno)
	}
	cmd := command(t, env, args...)
	cmd.Stdout, cmd.Stderr = terminal, os.Stderr
	shown := make(chan string)
	go func() {
		text, _ := io.ReadAll(screen) // ends with an error, when nobody has the terminal open
		shown <- string(text)
	}()
	if err := cmd.Run(); err != nil {
		t.Errorf("%v: %v", args, err)
	}
	terminal.Close()
	return strings.Split(strings.TrimSpace(strings.ReplaceAll(<-shown, "\r\n", "\n")), "\n")
}

// cells are the columns that text takes on a terminal, reckoned otherwise than by the
// command: the texts of the tests have no other wide characters and accents.
func cells(text string) int {
	n := utf8.RuneCountInString(text)
	for _, r := range text {
		switch {
		case unicode.In(r, unicode.Han, unicode.Hangul, unicode.Hiragana), r == '🙂':
			n++
		case r == '\u0301':
			n--
		}
	}
	return n
}

func TestTablesFitTheTerminal(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	for _, scope := range []string{"short", strings.Repeat("customer-", 8) + "end", strings.Repeat("日本語", 20), strings.Repeat("e\u0301", 70), strings.Repeat("🙂", 30), "esc\x1b[31m" + strings.Repeat("y", 60)} {
		execute(t, pool, scope, "order-"+strings.Repeat("0123456789", 12)+"-last", strings.Repeat("result ", 50))
		execute(t, pool, scope, "k", 1)
	}
	id := "order-" + strings.Repeat("0123456789", 12) + "-last"
	do(t, pool, "insert into idempotency_keys (id, scope, purge_after) values ('"+id+"', 'torn', now() + interval '1 hour')")
	for _, args := range [][]string{{"list"}, {"list", "-show-result"}, {"find", id}, {"list", "-prefix", "order"}, {"stats"}} {
		for _, width := range []uint16{80, 100, 133} {
			lines := onTerminal(t, width, on(pool), args...)
			cut := 0
			for _, line := range lines {
				if strings.HasPrefix(line, "Arrivals by the hour") { // a title, and no table
					continue
				}
				if cells(line) > int(width) || strings.ContainsAny(line, "\x1b") || !utf8.ValidString(line) {
					t.Errorf("%v, %d columns: %d: %q", args, width, cells(line), line)
				}
				cut += strings.Count(line, "…")
			}
			if cut == 0 && (args[0] != "stats" || width == 80) {
				t.Errorf("%v, %d columns: nothing is cut: %q", args, width, lines)
			}
			if args[0] != "stats" {
				at := strings.Index(lines[0], "STATE") // all before it are ASCII in the line of the names
				for _, line := range lines[1:] {
					i := strings.Index(line, "  done  ")
					if i < 0 {
						i = strings.Index(line, "  abandoned  ")
					}
					if i < 0 || cells(line[:i])+2 != at {
						t.Errorf("%v, %d columns: out of line:\n%s\n%s", args, width, lines[0], line)
					}
				}
				if all := strings.Join(lines, "\n"); !strings.Contains(all, "last ") || !strings.Contains(all, "torn ") || args[0] == "list" && len(args) == 1 && !strings.Contains(all, " k ") {
					t.Errorf("%v: the end of a key is missing, or a short one is cut:\n%s", args, all)
				}
			}
		}
	}
	// A terminal as narrow as this has no room for the columns that are not cut.
	for _, line := range onTerminal(t, 30, on(pool), "list") {
		if cells(line) > 30 {
			t.Errorf("%q", line)
		}
	}
	// Whoever sets COLUMNS knows it better; and where nobody knows it, nothing is cut.
	for columns, width := range map[string]int{"COLUMNS=90": 90, "COLUMNS=x": 120, "COLUMNS=0": 120} {
		widest := 0
		for _, line := range onTerminal(t, 120, append(on(pool), columns), "list") {
			widest = max(widest, cells(line))
		}
		if widest != width {
			t.Errorf("%s: %d columns", columns, widest)
		}
	}
	if lines := onTerminal(t, 0, on(pool), "list"); !strings.Contains(strings.Join(lines, "\n"), id) {
		t.Errorf("%q", lines)
	}
	// get shows all of a key: somewhere it has to stand.
	if lines := onTerminal(t, 60, on(pool), "get", "torn", id); !strings.Contains(strings.Join(lines, "\n"), id) {
		t.Errorf("%q", lines)
	}
	for _, args := range [][]string{{"list"}, {"find", id}, {"list", "-json"}} {
		r := run(t, append(on(pool), "COLUMNS=40"), args...)
		if !strings.Contains(r.stdout, id) || strings.Contains(r.stdout, "…") {
			t.Errorf("what goes into a pipe is cut: %s", r.stdout)
		}
	}
	for _, line := range onTerminal(t, 40, on(pool), "find", "-json", id) {
		if !strings.Contains(line, id) {
			t.Errorf("JSON is cut: %s", line)
		}
	}
}
