package history

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// root is the folder of the package under test.
const root = "../.."

// buildWorker builds the worker with the given files of the package under test
// replaced, and returns the program's name.
func buildWorker(t *testing.T, replaced map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	program := filepath.Join(dir, "worker")
	args := []string{"build", "-ldflags=-s -w", "-o", program} // half the time to link
	if len(replaced) > 0 {
		args = append(args, "-overlay", writeOverlay(t, dir, replaced))
	}
	cmd := exec.Command("go", append(args, "./worker")...)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", cmd, err, out)
	}
	return program
}

// writeOverlay writes the file for go build -overlay.
func writeOverlay(t *testing.T, dir string, replaced map[string]string) string {
	t.Helper()
	overlay := struct{ Replace map[string]string }{make(map[string]string)}
	for name, text := range replaced {
		original, err := filepath.Abs(filepath.Join(root, name))
		if err != nil {
			t.Fatal(err)
		}
		overlay.Replace[original] = filepath.Join(dir, name)
		write(t, overlay.Replace[original], []byte(text))
	}
	text, err := json.Marshal(overlay)
	if err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(dir, "overlay.json")
	write(t, name, text)
	return name
}

func write(t *testing.T, name string, text []byte) {
	t.Helper()
	if err := os.WriteFile(name, text, 0o644); err != nil {
		t.Fatal(err)
	}
}

// An edit replaces a piece of a source file of the package under test.
type edit struct{ file, old, new string }

// mutate returns the edited files. Each edit has to match exactly once: when the
// source has moved on, the mutation has to follow.
func mutate(t *testing.T, edits []edit) map[string]string {
	t.Helper()
	mutated := make(map[string]string)
	for _, e := range edits {
		text, ok := mutated[e.file]
		if !ok {
			source, err := os.ReadFile(filepath.Join(root, e.file))
			if err != nil {
				t.Fatal(err)
			}
			text = string(source)
		}
		if n := strings.Count(text, e.old); n != 1 {
			t.Fatalf("this mutation needs adjusting: %s contains %d times, not once:\n%s", e.file, n, e.old)
		}
		mutated[e.file] = strings.Replace(text, e.old, e.new, 1)
	}
	return mutated
}
