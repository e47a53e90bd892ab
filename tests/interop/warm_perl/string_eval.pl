#!/usr/bin/perl
eval "die 'in eval'"; print $@; eval "1 +"; print $@ =~ /syntax error/ ? "syntax\n" : "none\n";
eval q{ BEGIN { print "begin in eval\n" } INIT { print "never\n" } }; print "after $@\n";
print eval "__LINE__", " ", (caller(0))[3] || "top", "\n";
