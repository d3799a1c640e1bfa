package main_test

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"unsafe"

	"github.com/pgidem/idempotency/internal/pgtest"
)

func TestDownAsksAtATerminal(t *testing.T) {
	t.Parallel()
	pool := pgtest.Empty(t)
	run(t, on(pool), "migrate", "up").want(t, 0, "up to date\n", "")
	for _, row := range []struct {
		typed string
		exit  int
		says  string
		left  string
	}{
		{"no\n", 1, "not confirmed: nothing was changed", latest() + "\n"},
		{"\n", 1, "not confirmed: nothing was changed", latest() + "\n"},
		{"yes\n", 0, "removed", "0\n"},
	} {
		screen, terminal := openTerminal(t)
		cmd := command(t, on(pool), "migrate", "down")
		cmd.Stdin = terminal
		if _, err := screen.WriteString(row.typed); err != nil {
			t.Fatal(err)
		}
		r := finish(t, cmd)
		all := r.stderr + r.stdout
		if r.exit != row.exit || !strings.Contains(all, row.says) ||
			!strings.Contains(all, fmt.Sprintf("all recorded results and unfinished operations, in database %q", pool.Config().ConnConfig.Database)) {
			t.Errorf("typed %q: %+v", row.typed, r)
		}
		if r := run(t, on(pool), "migrate", "version"); r.stdout != row.left {
			t.Errorf("typed %q: version %s", row.typed, r.stdout)
		}
	}
}

func TestInterruptAtTheQuestionChangesNothing(t *testing.T) {
	t.Parallel()
	pool := pgtest.Empty(t)
	_, terminal := openTerminal(t)
	cmd := command(t, on(pool), "migrate", "down")
	var stderr lockedBuffer
	cmd.Stdin, cmd.Stderr = terminal, &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the question", func() bool { return strings.Contains(stderr.String(), "Type yes") })
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); cmd.ProcessState.ExitCode() != 1 || !strings.Contains(stderr.String(), "interrupted: nothing was changed") {
		t.Error(err, stderr.String())
	}
}

// openTerminal makes a pseudo-terminal: what is written to screen is typed at
// terminal.
func openTerminal(t *testing.T) (screen, terminal *os.File) {
	t.Helper()
	screen, err := os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Skip("no pseudo-terminals: ", err)
	}
	t.Cleanup(func() { screen.Close() })
	var unlock, number int32
	for request, value := range map[uintptr]*int32{syscall.TIOCSPTLCK: &unlock, syscall.TIOCGPTN: &number} {
		if _, _, errno := syscall.Syscall(syscall.SYS_IOCTL, screen.Fd(), request, uintptr(unsafe.Pointer(value))); errno != 0 {
			t.Fatal(errno)
		}
	}
	terminal, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { terminal.Close() })
	return screen, terminal
}

// A lockedBuffer can be read while a process writes to it.
type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

func TestDeleteAsksAtATerminal(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	execute(t, pool, "s", "i", 1)
	for _, row := range []struct {
		typed string
		exit  int
		says  string
		left  int
	}{
		{"no\n", 1, "not confirmed: nothing was changed", 1},
		{"yes\n", 0, "deleted", 0},
	} {
		screen, terminal := openTerminal(t)
		cmd := command(t, on(pool), "delete", "s", "i")
		cmd.Stdin = terminal
		if _, err := screen.WriteString(row.typed); err != nil {
			t.Fatal(err)
		}
		r := finish(t, cmd)
		if all := r.stderr + r.stdout; r.exit != row.exit || !strings.Contains(all, row.says) || !strings.Contains(all, "a retry runs the operation again") {
			t.Errorf("typed %q: %+v", row.typed, r)
		}
		if n := left(t, pool); n != row.left {
			t.Errorf("typed %q: %d records left", row.typed, n)
		}
	}
}

func TestPurgeShowsItsProgressOnATerminal(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	expiredRows(t, pool, 8000)
	screen, terminal := openTerminal(t)
	cmd := command(t, on(pool), "purge", "-once")
	cmd.Stderr = terminal
	out, err := cmd.Output()
	if err != nil || string(out) != "8,000 expired records deleted\n" {
		t.Errorf("%q, %v", out, err)
	}
	terminal.Close()
	shown, _ := io.ReadAll(screen) // ends with an error, when nobody has the terminal open
	if text := string(shown); !strings.Contains(text, "\r") || !strings.Contains(text, ",000 expired records deleted ") || !strings.HasSuffix(text, " \r") {
		t.Errorf("on the terminal: %q", text)
	}
}
