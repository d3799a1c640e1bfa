package dashboardtest

import (
	"encoding/json"
	"fmt"
	"math"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/pgidem/idempotency/internal/pgtest"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

// patience is how long something may take that takes a second or two.
const patience = 2 * time.Minute

const job = "payments"

// A dashboard is what matters here of Grafana's format.
type dashboard struct {
	Templating struct {
		List []struct {
			Name, Type string
			Query      any
		}
	}
	Panels []struct {
		Title, Type, Description string
		Targets                  []struct{ Expr, LegendFormat string }
	}
}

func load(t *testing.T) (d dashboard) {
	t.Helper()
	text, err := os.ReadFile("../../docs/grafana-dashboard.json")
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, &d); err != nil {
		t.Fatal(err)
	}
	return d
}

// substituted is an expression with the dashboard's variables as Grafana puts
// them in.
func substituted(expr string) string {
	return strings.NewReplacer("$__rate_interval", "1m", "$__range", "3h", "$job", job).Replace(expr)
}

// missing says why an answer is none for a panel; "" if it is one.
func missing(samples []sample, legend string) string {
	if len(samples) == 0 {
		return "no data"
	}
	for _, s := range samples {
		if math.IsNaN(float64(s.Value)) || math.IsInf(float64(s.Value), 0) {
			return fmt.Sprintf("%v is %v", s.Metric, s.Value)
		}
		for _, label := range regexp.MustCompile(`{{(\w+)}}`).FindAllStringSubmatch(legend, -1) {
			if s.Metric[label[1]] == "" {
				return fmt.Sprintf("%v has no %s for the legend", s.Metric, label[1])
			}
		}
	}
	return ""
}

func TestEveryQueryOfTheDashboardReturnsDataOfARealRun(t *testing.T) {
	d, w := load(t), setup(t)
	p := scraping(t, w.target, job)
	queries := 0
	for _, panel := range d.Panels {
		for _, target := range panel.Targets {
			queries++
			expr := substituted(target.Expr)
			if strings.Contains(expr, "$") {
				t.Errorf("%s: a variable without a value: %s", panel.Title, expr)
			}
			w.until(panel.Title+": "+expr, func() (string, error) {
				samples, err := p.query(expr)
				return missing(samples, target.LegendFormat), err
			})
		}
		if panel.Type != "row" && (len(panel.Targets) == 0 || panel.Description == "") {
			t.Errorf("%s has no query or no description", panel.Title)
		}
	}
	if queries < 12 {
		t.Errorf("only %d queries", queries)
	}
	d.checkVariables(w, p)
	w.agreesWith(p)
}

// until works until what is asked for is there. A query that does not parse fails
// at once.
func (w *workload) until(what string, ask func() (missing string, err error)) {
	w.Helper()
	last := ""
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); {
		w.round()
		var err error
		if last, err = ask(); err != nil {
			w.Errorf("%s: %v", what, err)
			return
		}
		if last == "" {
			return
		}
	}
	w.Errorf("%s: %s", what, last)
}

func (d dashboard) checkVariables(w *workload, p *prometheus) {
	asked := 0
	for _, v := range d.Templating.List {
		query, _ := v.Query.(map[string]any)
		m := regexp.MustCompile(`^label_values\((\w+), (\w+)\)$`).FindStringSubmatch(fmt.Sprint(query["query"]))
		if v.Type != "query" {
			continue
		}
		if m == nil {
			w.Errorf("variable %s: %v", v.Name, v.Query)
			continue
		}
		asked++
		if values, err := p.labelValues(m[1], m[2]); err != nil || len(values) != 1 || values[0] != job {
			w.Errorf("variable %s: %v, %v", v.Name, values, err)
		}
	}
	if asked == 0 {
		w.Error("the dashboard has no variable that is asked for")
	}
}

// agreesWith compares what Prometheus has with what the program knows.
func (w *workload) agreesWith(p *prometheus) {
	w.Helper()
	const counts = "idempotency_operation_duration_seconds_count"
	want := map[string]int{"sum(idempotency_runs_total)": w.runs}
	for _, outcome := range []string{"executed", "replayed", "in_progress", "key_reused", "failed"} {
		want[fmt.Sprintf(`sum(%s{db_operation_name=~"Do|DoTx|QueryRow|Query|Procedure", idempotency_outcome=%q})`, counts, outcome)] = w.calls[outcome]
	}
	for _, part := range []struct{ operation, outcome string }{{"Step", "executed"}, {"Call", "executed"}, {"Call", "failed"}} {
		want[fmt.Sprintf(`sum(%s{db_operation_name=%q, idempotency_outcome=%q})`, counts, part.operation, part.outcome)] = w.parts[part.operation+part.outcome]
	}
	want[`sum(idempotency_commits_in_doubt_total{idempotency_in_doubt="committed"})`] = w.turn
	want["sum(idempotency_retries_total)"] = w.turn
	want["sum(idempotency_active_operations)"] = 0
	for expr, n := range want {
		got := []sample(nil)
		for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(100 * time.Millisecond) {
			var err error
			if got, err = p.query(expr); err != nil || len(got) == 1 && int(got[0].Value) == n {
				break
			}
		}
		if len(got) != 1 || int(got[0].Value) != n || n == 0 && !strings.Contains(expr, "active") {
			w.Errorf("%s is %v, want %d", expr, got, n)
		}
	}
}
