package dashboardtest

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"
)

// A prometheus is a real one, at work.
type prometheus struct {
	t       testing.TB
	address string
}

// scraping starts a Prometheus that scrapes target. It ends with the test.
func scraping(t testing.TB, target, job string) *prometheus {
	t.Helper()
	binary, err := exec.LookPath("prometheus")
	if err != nil {
		t.Fatal("no prometheus in the PATH: install Debian's package prometheus, or the binary from prometheus.io: ", err)
	}
	dir := t.TempDir()
	config := filepath.Join(dir, "prometheus.yml")
	text := fmt.Sprintf(`
global:
  scrape_interval: 250ms
  scrape_timeout: 250ms
scrape_configs:
  - job_name: %q
    static_configs:
      - targets: [%q]
`, job, target)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	for range 3 { // another process may take the port first
		p := &prometheus{t: t, address: freeAddress(t)}
		if p.start(binary, config, filepath.Join(dir, p.address)) {
			return p
		}
	}
	t.Fatal("prometheus did not start")
	return nil
}

func freeAddress(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// keeper runs a command until its own input ends: also when the test was killed,
// which runs no Cleanup.
const keeper = `exec 3<&0; "$@" & command=$!
{ cat <&3; kill -9 $command; } >/dev/null 2>&1 &
wait $command`

// start reports whether the process is ready; it logs what it said if not.
func (p *prometheus) start(binary, config, data string) bool {
	p.t.Helper()
	var log bytes.Buffer
	process := exec.Command("sh", "-c", keeper, "sh", binary, "--config.file="+config,
		"--storage.tsdb.path="+data, "--web.listen-address="+p.address, "--log.level=warn")
	process.Stdout, process.Stderr = &log, &log
	input, err := process.StdinPipe()
	if err == nil {
		err = process.Start()
	}
	if err != nil {
		p.t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- process.Wait() }()
	p.t.Cleanup(func() {
		input.Close()
		<-ended
		ended <- nil
	})
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(100 * time.Millisecond) {
		select {
		case err := <-ended:
			ended <- nil
			p.t.Logf("prometheus: %v\n%s", err, &log)
			return false
		default:
		}
		resp, err := http.Get("http://" + p.address + "/-/ready")
		if err != nil {
			continue
		}
		resp.Body.Close()
		if resp.StatusCode == http.StatusOK {
			return true
		}
	}
	p.t.Log("prometheus was not ready in time")
	return false
}

// A sample is one series of an answer.
type sample struct {
	Metric map[string]string
	Value  value
}

// A value is what Prometheus sends as [time, "text"].
type value float64

func (v *value) UnmarshalJSON(text []byte) error {
	var pair [2]any
	if err := json.Unmarshal(text, &pair); err != nil {
		return err
	}
	number, err := strconv.ParseFloat(fmt.Sprint(pair[1]), 64)
	*v = value(number)
	return err
}

// query evaluates an expression now.
func (p *prometheus) query(expr string) ([]sample, error) {
	var data struct{ Result []sample }
	err := p.get("/api/v1/query", url.Values{"query": {expr}}, &data)
	return data.Result, err
}

// labelValues is what Grafana asks for a variable's values.
func (p *prometheus) labelValues(metric, label string) (values []string, err error) {
	err = p.get("/api/v1/label/"+label+"/values", url.Values{"match[]": {metric}}, &values)
	return values, err
}

func (p *prometheus) get(path string, args url.Values, data any) error {
	ctx, cancel := context.WithTimeout(p.t.Context(), patience)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, "GET", "http://"+p.address+path+"?"+args.Encode(), nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	var answer struct {
		Status string
		Error  string
		Data   json.RawMessage
	}
	if err := json.Unmarshal(text, &answer); err != nil {
		return fmt.Errorf("%s: %s", resp.Status, text)
	}
	if answer.Status != "success" {
		return fmt.Errorf("%s: %s", answer.Status, answer.Error)
	}
	return json.Unmarshal(answer.Data, data)
}
