import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.PreparedStatement;
import java.sql.ResultSet;

/** Writes what SHOW LISTS says, once the driver has asked so often that it takes named statements and binary. */
public class Lists {
    public static void main(String[] arguments) throws Exception {
        try (Connection connection = DriverManager.getConnection(arguments[0])) {
            connection.setAutoCommit(false);
            connection.getTransactionIsolation();
            connection.commit();
            connection.setAutoCommit(true);
            if (!connection.isValid(5)) {
                throw new IllegalStateException("not valid");
            }
            StringBuilder last = new StringBuilder();
            try (PreparedStatement statement = connection.prepareStatement("SHOW LISTS")) {
                for (int time = 0; time < 7; time++) {
                    last.setLength(0);
                    try (ResultSet rows = statement.executeQuery()) {
                        while (rows.next()) {
                            last.append(rows.getString("list")).append('\t').append(rows.getInt("items")).append('\n');
                        }
                    }
                }
            }
            System.out.print(last);
        }
    }
}
