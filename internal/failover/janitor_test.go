package failover

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// orphanEnv makes the test below the one that is killed.
const orphanEnv = "FAILOVER_ORPHAN"

func TestKilledTestsLeaveNoServerAndNoFile(t *testing.T) {
	if os.Getenv(orphanEnv) != "" {
		p := New(t, Options{})
		p.Freeze(p.Standby)
		fmt.Println(here.dir)
		select {}
	}
	t.Parallel()
	cmd := exec.Command(os.Args[0], "-test.run", "^"+t.Name()+"$")
	cmd.Env = append(os.Environ(), orphanEnv+"=1")
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	cmd.Process.Kill()
	cmd.Wait()
	dir := strings.TrimSpace(line)
	if err != nil || !filepath.IsAbs(dir) {
		t.Fatalf("the other tests said %q, %v", line, err)
	}
	expectNothingLeft(t, dir)
}

// expectNothingLeft waits until dir is gone, and every process of its servers.
func expectNothingLeft(t *testing.T, dir string) {
	t.Helper()
	for end := time.Now().Add(limit); ; time.Sleep(50 * time.Millisecond) {
		pids, err := processes(filepath.Base(dir))
		if err != nil {
			t.Fatal(err)
		}
		_, err = os.Stat(dir)
		if len(pids) == 0 && os.IsNotExist(err) {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("left behind: processes %v, folder %s: %v", pids, dir, err)
		}
	}
}
