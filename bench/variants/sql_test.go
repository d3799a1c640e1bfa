package main

import (
	"go/ast"
	"go/parser"
	"go/token"
	"strconv"
	"testing"
)

func TestStatementsAreThePackagesOwn(t *testing.T) {
	file, err := parser.ParseFile(token.NewFileSet(), "../../postgres.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	own := map[string]string{}
	ast.Inspect(file, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok || len(spec.Names) != 1 || len(spec.Values) != 1 {
			return true
		}
		if lit, ok := spec.Values[0].(*ast.BasicLit); ok && lit.Kind == token.STRING {
			own[spec.Names[0].Name], _ = strconv.Unquote(lit.Value)
		}
		return true
	})
	for name, copied := range map[string]string{
		"settingsSQL": settingsSQL, "claimSQL": claimSQL, "readSQL": readSQL, "recordSQL": recordSQL, "purgeSQL": purgeSQL,
	} {
		if own[name] != copied {
			t.Errorf("%s of the package is%s\n\nnot%s", name, own[name], copied)
		}
	}
}
