#!/usr/bin/perl
system "exit 3";
$! = 0;
die "by the status of a child\n";
