package main

import (
	"bytes"
	"strings"
	"testing"
)

func TestEverySectionRuns(t *testing.T) {
	for _, s := range sections {
		t.Run(s.name, func(t *testing.T) {
			var out bytes.Buffer
			args := []string{"-brief", "-rows", "16000", "-scopes", "100", "-churn", "2000", "-sections", s.name}
			if err := command(t.Context(), args, &out); err != nil {
				t.Fatal(err)
			}
			t.Log(out.String())
			if rows := strings.Count(out.String(), "\n| "); rows < 5 {
				t.Errorf("%d rows of tables", rows)
			}
		})
	}
}

func TestVariantThatChangesNothingIsRefused(t *testing.T) {
	v := variant{table: []edit{{"primary key (nothing)", ""}}}
	if _, err := v.ddl(); err == nil {
		t.Error("no error")
	}
}
