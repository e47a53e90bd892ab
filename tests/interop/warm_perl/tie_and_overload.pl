#!/usr/bin/perl
package Up; sub TIESCALAR { bless [0] } sub FETCH { $_[0][0]++ } sub STORE { $_[0][0] = $_[1] }
package Num; use overload '+' => sub { "plus" }, '""' => sub { "num" };
package main; BEGIN { tie our $t, 'Up' } our $t; print "$t $t $t\n"; my $n = bless [], 'Num'; print $n + 1, " $n\n";
