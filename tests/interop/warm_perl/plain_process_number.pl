#!/usr/bin/perl
# plain: looks at its process number
BEGIN { $pid = $$ }
print $pid == $$ ? "same\n" : "other\n";
