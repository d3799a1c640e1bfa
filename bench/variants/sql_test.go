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
	parts := map[string]ast.Expr{}
	ast.Inspect(file, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok || len(spec.Names) != 1 || len(spec.Values) != 1 {
			return true
		}
		parts[spec.Names[0].Name] = spec.Values[0]
		return true
	})
	var text func(ast.Expr) string
	text = func(e ast.Expr) string {
		switch e := e.(type) {
		case *ast.BasicLit:
			unquoted, _ := strconv.Unquote(e.Value)
			return unquoted
		case *ast.Ident:
			return text(parts[e.Name])
		case *ast.BinaryExpr:
			return text(e.X) + text(e.Y)
		}
		return ""
	}
	for name, copied := range map[string]string{
		"settingsSQL": settingsSQL, "claimSQL": claimSQL, "readSQL": readSQL, "recordSQL": recordSQL,
	} {
		if own := text(parts[name]); own != copied {
			t.Errorf("%s of the package is%s\n\nnot%s", name, own, copied)
		}
	}
}
