#!/usr/bin/perl
my @big = map { { n => $_, s => "x" x 50 } } 1 .. 20000; print scalar @big, " $big[-1]{n}\n"; @big = ();
